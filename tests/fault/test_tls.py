"""Agents behind TLS: the one that its name says is spoken to, no other is told anything."""

import datetime as dt
import ipaddress
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from orchestrator.clients import dial
from orchestrator.core.frames import Delta
from orchestrator.testing.fake_agent import FakeAgent, Peer, calling, chunk, event, head

from .calls import BYE, HI, SAID, Chosen, Names, client, failure_of, frames_of

CHUNKED = (("Transfer-Encoding", "chunked"),)
PEM = serialization.Encoding.PEM


def name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def certificate(
    folder: Path, issuer: tuple[x509.Name, ec.EllipticCurvePrivateKey] | None, *names: str
) -> tuple[Path, ec.EllipticCurvePrivateKey]:
    """Write a certificate with its key for `names`, or an authority's without any."""
    key = ec.generate_private_key(ec.SECP256R1())
    own = name(names[0] if names else "authority")
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(own)
        .issuer_name(issuer[0] if issuer else own)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=not names, path_length=None), critical=True)
    )
    if names:
        made = made.add_extension(
            x509.SubjectAlternativeName([general(n) for n in names]), critical=False
        )
    signed = made.sign(issuer[1] if issuer else key, hashes.SHA256())
    path = folder / f"{names[0] if names else 'authority'}.pem"
    private = key.private_bytes(
        PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + signed.public_bytes(PEM))
    return path, key


def general(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


@pytest.fixture(autouse=True)
def _ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use our own client: aiohttp reads the authorities when it is imported."""
    monkeypatch.setattr(Chosen, "name", "own")


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """Have an authority trusted, and hand out the server side of agent.test and of 127.0.0.1."""
    authority, key = certificate(tmp_path, None)
    own, _ = certificate(tmp_path, (name("authority"), key), "agent.test", "127.0.0.1")
    monkeypatch.setenv("SSL_CERT_FILE", str(authority))
    dial._tls.cache_clear()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(own)
    return context


@pytest.fixture
async def agent(served: ssl.SSLContext) -> AsyncIterator[FakeAgent]:
    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            pieces = [chunk(HI), chunk(event("delta", text="x" * 300_000)), chunk(BYE), chunk(b"")]
            await peer.send(head(headers=CHUNKED), *pieces)

    async with FakeAgent(script, tls=served) as running:
        yield running
    dial._tls.cache_clear()


async def test_the_agent_of_that_name_is_heard_and_its_connection_used_again(
    agent: FakeAgent,
) -> None:
    names = Names(**{"agent.test": ["127.0.0.1"]})
    async with client(world=names) as http:
        for url in (f"https://agent.test:{agent.port}", f"https://127.0.0.1:{agent.port}"):
            for _ in range(2):
                frames = await frames_of(http, calling(url))
                assert [*frames[:1], *frames[2:]] == SAID
                assert frames[1] == Delta("x" * 300_000)
    assert len(agent.peers) == 2, "a connection for each name"


@pytest.mark.parametrize("host", ["other.test", "localhost"])
async def test_another_name_is_told_nothing(agent: FakeAgent, host: str) -> None:
    names = Names(**{host: ["127.0.0.1"]})
    async with client(world=names) as http:
        failure = await failure_of(http, calling(f"https://{host}:{agent.port}"))
    assert failure.code == "agent_unavailable"
    assert "certificate" in failure.message
    assert agent.requests == []


async def test_an_unknown_authority_is_told_nothing(
    agent: FakeAgent, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate(other, None)[0]))
    dial._tls.cache_clear()
    async with client(world=Names(**{"agent.test": ["127.0.0.1"]})) as http:
        failure = await failure_of(http, calling(f"https://agent.test:{agent.port}"))
    assert failure.code == "agent_unavailable"
    assert agent.requests == []
