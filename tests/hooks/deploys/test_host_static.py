from __future__ import annotations


async def test_a_static_release_is_served_after_its_roll(shelf, control, host, visitor, wanted):
    pin = shelf.put({"index.html": "hello", "style.css": "body{}"})
    report = await control.roll(wanted(pin=pin))
    assert report.status == "serving"
    assert report.error is None
    assert set(report.timings) == {"verify", "unpack", "start", "switch"}
    answer = await visitor.ask("/")
    assert (answer.status, answer.body) == (200, b"hello")
    print(report.timings)
