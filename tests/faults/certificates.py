"""Throw-away certificates, made with the openssl command."""

import ssl
import subprocess
from pathlib import Path

YEARS = ("20200101", "20360101")
"""Days between which a certificate is valid today."""

_SETTINGS = """
[ca]
default_ca = authority
[authority]
database = index.txt
serial = serial
new_certs_dir = .
default_md = sha256
policy = names
x509_extensions = extensions
[names]
commonName = supplied
[extensions]
subjectAltName = {name}
basicConstraints = critical, CA:TRUE
[req]
distinguished_name = none
[none]
"""


def certificate(directory: Path, name: str, days: tuple[str, str]) -> tuple[ssl.SSLContext, Path]:
    """Return what a server needs to be `name` ("DNS:localhost"), and the certificate that a client has to trust.

    It is signed by itself and valid between two days (YYYYMMDD).
    """
    base = directory / "authority"
    base.mkdir()
    (base / "index.txt").write_text("")
    (base / "serial").write_text("01\n")
    (base / "settings").write_text(_SETTINGS.format(name=name))
    request = "req -new -newkey rsa:2048 -nodes -keyout key.pem -out request.pem -subj /CN=fault -config settings"
    signing = (
        "ca -batch -selfsign -config settings -keyfile key.pem -in request.pem -out certificate.pem -notext "
        f"-startdate {days[0]}000000Z -enddate {days[1]}000000Z"
    )
    for command in (request, signing):
        subprocess.run(["openssl", *command.split()], cwd=base, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(base / "certificate.pem", base / "key.pem")
    return context, base / "certificate.pem"
