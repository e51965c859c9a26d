"""Certificates for TLS between processes and nats-server, by an authority of one's own or a given one."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from omnibus.broker.nats_access import write_private
from omnibus.errors import ConfigError

_AUTHORITY_DAYS, _DAYS = 3650, 825
_SKEW = timedelta(hours=1)
"""Clocks of other hosts may be behind by so much."""


class Authority:
    """A certificate authority: `certificate` and `key` are paths of PEM files."""

    def __init__(self, certificate: Path, key: Path) -> None:
        """Raises ConfigError for files that are no certificate and its key."""
        try:
            self._certificate = x509.load_pem_x509_certificate(certificate.read_bytes())
            loaded = serialization.load_pem_private_key(key.read_bytes(), password=None)
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(f"cannot use {certificate} and {key} as certificate authority: {error}") from error
        if loaded.public_key() != self._certificate.public_key():
            raise ConfigError(f"{key} is not the key of {certificate}")
        self._key = loaded

    @classmethod
    def make(cls, certificate: Path, key: Path) -> Authority:
        """A new one, in these files."""
        private = ec.generate_private_key(ec.SECP256R1())
        name = _named("Omnibus authority")
        builder = _builder(name, name, private, _AUTHORITY_DAYS, signs=True)
        write_private(key, _pem(private))
        certificate.write_bytes(builder.sign(private, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        return cls(certificate, key)

    def issue(self, name: str, certificate: Path, key: Path, *, hosts: Sequence[str] = ()) -> None:
        """Write a certificate and its key: of a server where `hosts` are given, else of a client."""
        private = ec.generate_private_key(ec.SECP256R1())
        purpose = ExtendedKeyUsageOID.SERVER_AUTH if hosts else ExtendedKeyUsageOID.CLIENT_AUTH
        extensions: list[x509.ExtensionType] = [
            x509.ExtendedKeyUsage([purpose]),
            x509.AuthorityKeyIdentifier.from_issuer_public_key(self._certificate.public_key()),  # type: ignore[arg-type] # any signing key
        ]
        if hosts:
            extensions.append(x509.SubjectAlternativeName([_host(host) for host in hosts]))
        builder = _builder(_named(name), self._certificate.subject, private, _DAYS, signs=False)
        for extension in extensions:
            builder = builder.add_extension(extension, critical=False)
        write_private(key, _pem(private))
        signed = builder.sign(self._key, hashes.SHA256())  # type: ignore[arg-type] # any signing key
        certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: int, *, signs: bool
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.BasicConstraints(ca=signs, path_length=0 if signs else None), critical=True)
        .add_extension(_usage(signs=signs), critical=True)
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs, key_cert_sign=signs, crl_sign=signs, content_commitment=False,
        key_encipherment=False, data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)
