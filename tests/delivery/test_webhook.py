"""Webhooks as their receivers see them: verified by code that shares nothing with the product's."""

import base64
import hashlib
import struct
import time
from datetime import UTC, datetime

import pytest

from handlers.alerts.webhook import key_of, shown_url, signature
from handlers.context import Context, Services
from tests.delivery.conftest import SECRET, all_are, delivering, new_channel, tell
from tests.delivery.servers import Post, Receiver
from tests.support.polling import eventually


def verified(post: Post, secret: str) -> bool:
    """HMAC-SHA-256 by RFC 2104, written out, over what the headers and the body say."""
    key = base64.b64decode(secret.split("_", 1)[1]).ljust(64, b"\0")
    signed = f"{post.headers['webhook-id']}.{post.headers['webhook-timestamp']}.".encode() + post.body
    inner = hashlib.sha256(bytes(b ^ 0x36 for b in key) + signed).digest()
    expected = base64.b64encode(hashlib.sha256(bytes(b ^ 0x5C for b in key) + inner).digest()).decode()
    return f"v1,{expected}" in post.headers["webhook-signature"].split(" ")


async def test_a_webhook_is_signed_as_standard_webhooks_has_it(services: Services, receiver: Receiver) -> None:
    await new_channel(services, "hook", kind="webhook", url=receiver.url("a/b?c=d"), secret=SECRET)
    async with delivering(services):
        [delivery_id] = await tell(services, "hook", level="warning", title="Ärger & <b>Kosten</b>")
        await eventually(all_are(services, "sent", 1))
    [post] = receiver.posts
    assert post.path == "/a/b?c=d"
    assert verified(post, SECRET)
    assert not verified(Post(post.path, post.headers, post.body + b" "), SECRET)
    assert not verified(post, "whsec_" + base64.b64encode(struct.pack("24x")).decode())
    assert post.headers["webhook-id"] == delivery_id
    assert abs(int(post.headers["webhook-timestamp"]) - time.time()) < 60
    assert post.headers["content-type"] == "application/json"
    body = post.json
    assert body["type"] == "alert" and body["org"] == "default" and body["channel"] == "hook"
    assert body["data"]["delivery_id"] == delivery_id
    assert (body["data"]["level"], body["data"]["title"]) == ("warning", "Ärger & <b>Kosten</b>")
    assert datetime.fromisoformat(body["timestamp"]) <= datetime.now(UTC)


async def test_a_receiver_can_drop_repeats_by_their_id(services: Services, receiver: Receiver) -> None:
    receiver.status = 503
    await new_channel(services, "hook", kind="webhook", url=receiver.url(), secret=SECRET)
    async with delivering(services):
        await tell(services, "hook")
        await eventually(lambda: len(receiver.posts) >= 3)
        receiver.status = 204
        await eventually(all_are(services, "sent", 1))
    assert len({post.headers["webhook-id"] for post in receiver.posts}) == 1
    assert all(verified(post, SECRET) for post in receiver.posts)


def test_the_published_example_of_standard_webhooks() -> None:
    """From the specification's own test vector."""
    body = b'{"test": 2432232314}'
    found = signature(
        key_of("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"), "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body
    )
    assert found == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://user:pass@hooks.example.com/T0/B0/xyz?k=v#f", "https://hooks.example.com/…"),
        ("http://[2001:db8::1]:8080/x", "http://[2001:db8::1]:8080/…"),
    ],
)
def test_a_url_is_shown_without_what_may_be_secret(url: str, shown: str) -> None:
    assert shown_url(url) == shown


async def test_gone_is_final(services: Services, ctx: Context, receiver: Receiver) -> None:
    receiver.status = 410
    await new_channel(services, "hook", kind="webhook", url=receiver.url(), secret=SECRET)
    async with delivering(services):
        await tell(services, "hook")
        await eventually(all_are(services, "dead", 1))
    assert len(receiver.posts) == services.limits.delivery_refused_attempts_max
