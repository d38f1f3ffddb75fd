"""What is checked before an artifact serves: who vouches for it, and who says it may run here."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Final

from hooks.clock import now_ms
from hooks.deploys.errors import HOST_FAILED, RollFailedError
from hooks.deploys.host.state import EnvironmentState
from hooks.deploys.wire import ArtifactPin, Desired
from storage.digest import Digest
from storage.errors import (
    ArtifactCorruptError,
    ArtifactMissingError,
    DigestInvalidError,
    ReleaseElsewhereError,
    ReleaseExpiredError,
    ReleaseInvalidError,
    ReleaseKeyRetiredError,
    ReleaseReplayedError,
    SignatureInvalidError,
    StorageError,
)
from storage.manifest import Manifest
from storage.reader import StoreReader, VerifiedArtifact
from storage.release_statement import ReleaseStatement

_RELEASE_CODES: Final[Mapping[type[ReleaseInvalidError], str]] = {
    ReleaseInvalidError: "release.statement_invalid",
    ReleaseKeyRetiredError: "release.key_retired",
    ReleaseElsewhereError: "release.wrong_environment",
    ReleaseReplayedError: "release.replayed",
    ReleaseExpiredError: "release.expired",
}


class Verifier:
    """Reads the store for one environment, and believes only what is signed. Its methods block."""

    def __init__(self, reader: StoreReader, env_id: str) -> None:
        self._reader = reader
        self._env_id = env_id

    def artifact(
        self, site: str, artifact: ArtifactPin, manifest: Manifest | None = None
    ) -> VerifiedArtifact:
        """Check who vouches for the artifact. `manifest`: what was read of it before."""
        digest = Digest.parse(artifact.digest)
        return self._reader.verify(digest, artifact.envelope, site=site, manifest=manifest)

    def to_run(
        self,
        desired: Desired,
        artifact: ArtifactPin,
        *,
        above: int | None,
        manifest: Manifest | None = None,
    ) -> tuple[VerifiedArtifact, ReleaseStatement]:
        """Check that too, and that control says that it is to run here.

        `above`: the sequence that its word must be newer than; None for one that was gone by.
        """
        verified = self.artifact(desired.site, artifact, manifest)
        if desired.release is None:
            raise RollFailedError(
                "release.statement_missing", "control sent no statement with the release"
            )
        return verified, self._release(desired.release, verified, above)

    def served(self, state: EnvironmentState) -> tuple[VerifiedArtifact, ReleaseStatement | None]:
        """Check what the environment served, and went by, before this start.

        What was served before statements were signed has none; once there was one there must be
        one.
        """
        served = state.served
        assert served is not None, "there was something"
        verified = self.artifact(state.site, served.artifact)
        if served.release is not None:
            return verified, self._release(served.release, verified, None)
        if state.release_sequence:
            raise RollFailedError(
                "release.statement_missing", "the statement of what was served is gone"
            )
        return verified, None

    def _release(
        self, envelope: str, verified: VerifiedArtifact, above: int | None
    ) -> ReleaseStatement:
        return self._reader.verify_release(
            envelope.encode(), verified, env_id=self._env_id, above=above, now_ms=now_ms()
        )


@contextlib.contextmanager
def as_roll_failures() -> Iterator[None]:
    """Say of storage's errors what they mean for a roll."""
    try:
        yield
    except ReleaseInvalidError as error:
        raise RollFailedError(_RELEASE_CODES[type(error)], str(error)) from error
    except SignatureInvalidError as error:
        raise RollFailedError("artifact.signature_invalid", str(error)) from error
    except ArtifactMissingError as error:
        raise RollFailedError("artifact.missing", str(error)) from error
    except (ArtifactCorruptError, DigestInvalidError) as error:
        raise RollFailedError("artifact.corrupt", str(error)) from error
    except (StorageError, OSError) as error:
        raise RollFailedError(HOST_FAILED, str(error)) from error
