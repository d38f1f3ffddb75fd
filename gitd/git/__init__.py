"""The git room: smart HTTP, receive-pack and upload-pack of our own. It knows nothing of sites."""

from gitd.git.access import GitAccess, Opened, Service
from gitd.git.errors import (
    NoRoomError,
    NotAllowedError,
    NotAuthenticatedError,
    NotFoundError,
    PushRefusedError,
    TooManyRequestsError,
)
from gitd.git.limits import GitLimits
from gitd.git.push import Push, PushReceiver, RefOutcome, RefUpdate, Remote
from gitd.git.service import GitService

__all__ = [
    "GitAccess",
    "GitLimits",
    "GitService",
    "NoRoomError",
    "NotAllowedError",
    "NotAuthenticatedError",
    "NotFoundError",
    "Opened",
    "Push",
    "PushReceiver",
    "PushRefusedError",
    "RefOutcome",
    "RefUpdate",
    "Remote",
    "Service",
    "TooManyRequestsError",
]
