"""H3: the host that we decide on is the host that requests dials, over many URLs, most of them odd."""

# ruff: noqa: RUF001

from __future__ import annotations

import contextlib
import ipaddress
import random
from collections.abc import Iterator
from urllib.parse import urlparse, urlsplit

import pytest
import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import HTTPError
from urllib3.util import parse_url

from conftest import Configure
from loopback import VaultLike
from mlflow_secrets_auth import ConfigurationError, SecretsAuth, _core

Dialed = tuple[str, str, int]

SEED = 20240607
GENERATED = 100_000
#: What parsers raise for URLs that they do not take.
NOT_DIALED = (ValueError, requests.RequestException, HTTPError, LookupError)

SCHEMES = ["http", "https", "https", "https", "HTTPS", "hTTp", "ftp", "javascript", "http+unix", "", "ht\ttp", " http"]
SEPARATORS = ["://", "://", "://", "://", "://", ":/", ":///", ":\\\\", ":", "//", ":// ", ":/\\", "://\t", ":////"]
USERS = [
    "",
    "",
    "",
    "",
    "",
    "",
    "u@",
    "u:p@",
    "good.com@",
    "a%40b@",
    "\\@",
    "@@",
    "good.com:443@",
    "u:p@x@",
    "%00@",
    "#@",
    "?@",
]
HOSTS = [
    "good.com",
    "GOOD.com",
    "good.com.",
    "good.com..",
    ".good.com",
    "good..com",
    "a.b.c.good.com",
    "localhost",
    "xn--bcher-kva.example",
    "bücher.example",
    "BÜCHER.example",
    "ｇｏｏｄ.com",
    "good。com",
    "good．com",
    "ⓖⓞⓞⓓ.com",
    "good.com\u200b",
    "faß.de",
    "xn--fa-hia.de",
    "℀.com",
    "good%2ecom",
    "good.com%2f.evil.com",
    "good.com%00.evil.com",
    "%67ood.com",
    "good.com%20",
    "good.com\\.evil.com",
    "good.com\\",
    "127.0.0.1",
    "127.1",
    "0177.0.0.1",
    "0x7f.0.0.1",
    "0x7f000001",
    "2130706433",
    "017700000001",
    "127.0.0.01",
    "1.2.3",
    "1.2.3.4.5",
    "1.2.3.4.",
    "256.1.1.1",
    "１２７.0.0.1",
    "1.2.3.0x4",
    "0.0.0.0",
    "1e3",
    "0x",
    "good.0x1f",
    "good.1",
    "[::1]",
    "[0:0:0:0:0:0:0:1]",
    "[::ffff:127.0.0.1]",
    "[::FFFF:7f00:1]",
    "[2001:DB8::1]",
    "[fe80::1%25eth0]",
    "[fe80::1%eth0]",
    "[fe80::1%2525]",
    "[::1].good.com",
    "[::1]good.com",
    "[good.com]",
    "[::1",
    "::1]",
    "::1",
    "[v1.good]",
    "[]",
    "[::1%00]",
    "[1.2.3.4]",
    "[::1]@evil.com",
    "[[::1]]",
    "[::127.0.0.1]",
    "[1:2:3:4:5:6:7:8:9]",
    "",
    ".",
    "..",
    "-",
    "_",
    "a_b.good.com",
    "-a.good.com",
    "a-.good.com",
    "*.good.com",
    "good.com,evil.com",
    "good.com;evil.com",
    "good.com evil.com",
    "good.com\tevil.com",
    "good.com\nevil.com",
    "good.com\revil.com",
    "good.com\x00",
    "good.com\x0b",
    "good.com\x7f",
    "good.com\xa0",
    "good.com\xad",
    "good.com&evil.com",
    "good.com|evil.com",
    "good.com^",
    "good.com`",
    "good.com<",
    "good.com{x}",
    "good.com'",
    'good.com"',
    "good.com!",
    "good.com$",
    "good.com+",
    "good.com=",
    "good.com~",
    "good.com(1)",
    "a" * 63 + ".com",
    "a" * 64 + ".com",
    ".".join(["a" * 60] * 5),
    "good.com:443:80",
    "good.com:80@evil.com",
]
PORTS = [
    "",
    "",
    "",
    "",
    ":",
    ":80",
    ":443",
    ":8443",
    ":0",
    ":00443",
    ":080",
    ":+80",
    ":-1",
    ":65535",
    ":65536",
    ":99999",
    ":8a",
    ": 80",
    ":80 ",
    ":８０",
    ":1_0",
    ":0x50",
    ":80:80",
    ":@",
    ":٤٤٣",
]
TAILS = [
    "",
    "/",
    "/x",
    "/x?q=1#f",
    "?q",
    "#f",
    "\\x",
    "/\\evil.com",
    ";p=1",
    "/@evil.com",
    "?@evil.com",
    "#@evil.com",
    "\t/x",
    "%2f",
    "//evil.com/",
    "/..//evil.com",
    "?\\@evil.com",
    "#\\@evil.com",
    "/é",
    "\r\n/x",
    "/%0d%0a",
    "/ x",
    "&@evil.com",
    "/[",
    "/]",
]
NASTY = list(
    "@:/\\?#[]%.,;&=+$!*'()<>{}|^`~\"- \t\r\n\x00\x0b\x7f\xa0\xad\u200b\u2024\u3002\uff0e\uff20\uff0f\uff1a\u2100xX01é"
)


def made_up_host(source: random.Random) -> str:
    """A name, or an address in one of its many forms."""
    address = source.getrandbits(32)
    quads = [address >> shift & 255 for shift in (24, 16, 8, 0)]
    groups = [source.choice([0, 0, 1, source.getrandbits(16)]) for _ in range(8)]
    labels = ["".join(source.choices("abcXYZ019-_", k=source.randint(1, 12))) for _ in range(source.randint(1, 4))]
    return source.choice(
        [
            ".".join(labels),
            ".".join([*labels, "com"]) + source.choice(["", "", "."]),
            ".".join(f"{quad}" for quad in quads),
            ".".join(source.choice(["{:d}", "0{:o}", "0x{:x}", "0X{:X}", "{:03d}"]).format(quad) for quad in quads),
            source.choice(["{:d}", "0{:o}", "0x{:x}"]).format(address),
            f"{quads[0]}.{address & 0xFFFFFF}",
            "[" + ":".join(f"{group:x}" for group in groups) + "]",
            "[" + ":".join(f"{group:04X}" for group in groups) + "]",
            f"[{ipaddress.IPv6Address(source.getrandbits(128) >> source.randint(0, 127))}]",
            f"[::ffff:{'.'.join(f'{quad}' for quad in quads)}]",
            f"[fe80::{groups[0]:x}%{source.choice(['', '25'])}{labels[0]}]",
        ]
    )


def urls(source: random.Random, count: int) -> Iterator[str]:
    """This many different URLs, put together from the parts above; some with a nasty character somewhere."""
    made: set[str] = set()
    while len(made) < count:
        parts = [source.choice(choices) for choices in (SCHEMES, SEPARATORS, USERS, HOSTS, PORTS, TAILS)]
        if source.random() < 0.5:
            parts[3] = made_up_host(source)
        if source.random() < 0.6:
            # Plain but for the host and one part, so that the odd part is all that counts.
            kept = source.randrange(6)
            plain = ["https", "://", "", parts[3], "", "/x"]
            parts = [part if index == kept else plain[index] for index, part in enumerate(parts)]
        url = "".join(parts)
        if source.random() < 0.3:
            place = source.randrange(len(url) + 1)
            url = url[:place] + source.choice(NASTY) + url[place + source.randrange(2) :]
        made.add(url)
    # In the order of their text, so that every run is the same.
    yield from sorted(made)


def hand_picked() -> Iterator[str]:
    """Every host with every port, every tail after every user, all separators."""
    for host in HOSTS:
        for port in PORTS:
            yield f"https://{host}{port}/x"
        for user in USERS:
            yield f"http://{user}{host}/x"
        for tail in TAILS:
            yield f"https://{host}{tail}"
    for scheme in SCHEMES:
        for separator in SEPARATORS:
            yield f"{scheme}{separator}good.com/x"
    for user in USERS:
        for tail in TAILS:
            yield f"https://{user}good.com{tail}"


def normal(scheme: str | None, host: str | None, port: int | None) -> Dialed:
    """In one form: lower case, no brackets, no trailing dot, the shortest form of IPv6, the port in full."""
    assert scheme is not None and host is not None
    name = host.lower().strip("[]").removesuffix(".")
    with contextlib.suppress(ValueError):
        name = str(ipaddress.IPv6Address(name).exploded)
    return scheme.lower(), name, port or {"http": 80, "https": 443}[scheme.lower()]


def ours(url: str) -> Dialed | None:
    """What we decide on; None where we refuse."""
    try:
        origin = urlsplit(_core.origin(url))
    except ConfigurationError as error:
        assert error.code == "url.refused"
        return None
    return normal(origin.scheme, origin.hostname, origin.port)


ADAPTER = HTTPAdapter()


def dialed(url: str) -> list[Dialed | None]:
    """What requests dials for a URL on a prepared request: the way of today, the older way, and urllib3's parser."""
    return [_by(way, url) for way in WAYS]


def _by(way: object, url: str) -> Dialed | None:
    try:
        return way(url)  # type: ignore[operator,no-any-return]
    except (*NOT_DIALED, AttributeError, TypeError):
        return None


def _today(url: str) -> Dialed:
    request = requests.PreparedRequest()
    request.url = url
    pool = ADAPTER.get_connection_with_tls_context(request, verify=True)
    return normal(pool.scheme, pool.host, pool.port)


def _before(url: str) -> Dialed:
    pool = ADAPTER.poolmanager.connection_from_url(urlparse(url).geturl())
    return normal(pool.scheme, pool.host, pool.port)


def _urllib3(url: str) -> Dialed:
    parsed = parse_url(url)
    return normal(parsed.scheme, parsed.host, parsed.port)


def test_h3_one_host_for_us_and_for_requests() -> None:
    """H3: not one URL, raw or prepared, where we permit and any of the ways to dial goes elsewhere or nowhere."""
    tried = {*hand_picked(), *urls(random.Random(SEED), GENERATED)}
    forms = set(tried)
    for url in tried:
        with contextlib.suppress(*NOT_DIALED):
            forms.add(requests.Request("GET", url).prepare().url or "")
    decisions = {form: ours(form) for form in forms}
    permitted = {form: decided for form, decided in decisions.items() if decided is not None}
    wrong = [(form, decided, ways) for form, decided in permitted.items() if set(ways := dialed(form)) != {decided}]
    assert wrong == []
    assert len(tried) > GENERATED
    # The test would prove nothing if we refused everything.
    assert len(permitted) > len(tried) // 10


#: requests before 2.32 has the older way only.
WAYS = [_today, _before, _urllib3] if hasattr(HTTPAdapter, "get_connection_with_tls_context") else [_before, _urllib3]


BASES = ["https://good.com/a/b?x=1#f", "https://good.com:8443/", "http://good.com/", "https://[::1]:8443/x"]
RELATIVE = [
    "/x",
    "x",
    "../x",
    "?q",
    "",
    "//good.com/",
    "//good.com",
    "//evil.com/",
    "///evil.com",
    "////evil.com",
    "/\\evil.com",
    "\\\\evil.com",
]
RELATIVE += [
    "https:/x",
    "https:x",
    "https:evil.com",
    "https:///evil.com",
    "https:\\\\evil.com",
    "//good.com@evil.com",
    "//good.com\\@evil.com",
]
RELATIVE += [
    "//GOOD.com./x",
    "//good.com:443/",
    "//good.com:8443/",
    "https://good.com:8443",
    "//[::1]:8443/",
    "//[0::1]:8443/",
    "/é",
    "/%zz",
]


def test_h3_the_raw_hops_of_redirects(vault_like: VaultLike, configure: Configure) -> None:
    """H3: whatever stands in `Location`, the next request has our header only where it is dialed at the same origin."""
    configure(
        vault_like.settings(
            MLFLOW_AUTH_HEADER_NAME="X-MLflow-Auth", MLFLOW_SECRETS_ALLOWED_HOSTS="*", MLFLOW_SECRETS_ALLOW_HTTP="1"
        )
    )
    auth, session = SecretsAuth(), requests.Session()
    session.trust_env = False
    source = random.Random(SEED + 1)
    locations = [*RELATIVE, *urls(source, 15_000)]
    locations += [source.choice(RELATIVE) + source.choice(TAILS + NASTY) for _ in range(2_000)]
    kept = 0
    wrong: list[tuple[str, str, str]] = []
    for number, location in enumerate(locations):
        bases = BASES if number < len(RELATIVE) else [BASES[number % len(BASES)]]
        for base in bases:
            following = next_request(session, auth, base, location)
            if following is None or "X-MLflow-Auth" not in following.headers:
                continue
            kept += 1
            goes_to, start = set(dialed(str(following.url))), ours(base)
            # http on port 80 to https on port 443 of the same host is the one exception.
            upgraded = ("https", start[1], 443) if start and start[::2] == ("http", 80) else start
            if goes_to not in ({start}, {upgraded}):
                wrong.append((base, location, str(following.url)))
    assert wrong == []
    assert kept > 500


def next_request(
    session: requests.Session, auth: SecretsAuth, base: str, location: str
) -> requests.PreparedRequest | None:
    """The request that requests would send next, as it makes it itself; None where it refuses to."""
    request = requests.Request("GET", base, auth=auth).prepare()
    response = requests.Response()
    response.status_code, response.url, response.request = 302, request.url or "", request
    # As it comes off the wire.
    response.headers["Location"] = location.encode("utf-8", "surrogatepass").decode("latin1")
    response._content, response._content_consumed = b"", True
    [hook] = request.hooks["response"]
    assert hook(response) is response
    try:
        return next(session.resolve_redirects(response, request, yield_requests=True), None)  # type: ignore[arg-type]
    except NOT_DIALED:
        return None


@pytest.mark.parametrize(
    "url",
    [
        "https://u@good.com/",
        "https://good.com\\@evil.com/",
        "https://good.com\t/",
        "https://good%2ecom/",
        "https://[fe80::1%25lo]/",
        "https://2130706433/",
        "https://0177.0.0.1/",
        "https://good..com/",
        "https://good.com:0/",
        "https://good.com:/",
        "ftp://good.com/",
        "https:good.com",
        "",
    ],
)
def test_h3_any_doubt_is_an_error(url: str) -> None:
    """H3: the URL is refused before anything else is looked at, and without its password."""
    with pytest.raises(ConfigurationError) as caught:
        _core.origin(url)
    assert caught.value.code == "url.refused"


def test_h3_the_error_does_not_show_the_password() -> None:
    """H3: nor the query, and where a password may hold a slash, not the path either."""
    with pytest.raises(ConfigurationError) as caught:
        _core.origin("https://user:canary@good.com/path?token=canary")
    assert "canary" not in str(caught.value)
    assert "https://***@good.com" in caught.value.message
