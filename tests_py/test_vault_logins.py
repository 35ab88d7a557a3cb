"""Every way to log in to Vault, against OpenBao's real methods, and how long a login lasts."""

from __future__ import annotations

import json
import logging
import os
import pickle
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from loopback import Answer, VaultLike
from mlflow_secrets_auth import SecretsAuth, SecretsAuthError, headers_for, refresh
from servers import OpenBao, free_port, script
from vaults import (
    URL,
    BaoProxy,
    Kubernetes,
    Signer,
    TlsBao,
    enable_approle,
    enable_auth,
    failure,
    limited_token,
    new_policy,
    new_role,
    passed_on,
    read_policy,
    tokens_of,
)

ABC = {"Authorization": "Bearer abc"}


@pytest.fixture
def token_file() -> Path:
    return Path(os.environ["HOME"], ".vault-token")


def run(code: str, *arguments: str) -> Any:
    """Runs ``code`` in a Python of its own, with this environment, and reads the JSON that it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# Tokens, and the order of auto


def test_the_token_helpers_file_is_read_anew(bao, use_vault, path, token_file) -> None:
    bao.put_secret(path, token="abc")
    token_file.write_text(limited_token(bao, read_policy(path)) + "\n")
    use_vault(VAULT_TOKEN=None, MLFLOW_VAULT_TTL_SEC="0")
    assert headers_for(URL) == ABC
    token_file.write_text("s.canary-of-somebody")
    with pytest.raises(SecretsAuthError) as caught:
        refresh()
    assert caught.value.code == "vault.token_refused"
    assert str(token_file) in caught.value.message
    assert "canary" not in str(caught.value)
    token_file.write_text(limited_token(bao, read_policy(path)))
    refresh()


def test_a_stale_token_file_never_shadows_a_configured_login(bao, use_vault, path, token_file) -> None:
    bao.put_secret(path, token="abc")
    token_file.write_text("s.stale")
    use_vault(VAULT_TOKEN=None, **enable_approle(bao, "approle", read_policy(path)))
    assert headers_for(URL) == ABC


@pytest.mark.parametrize(
    ("begun", "lacking"),
    [
        ({"VAULT_SECRET_ID": "x"}, "VAULT_ROLE_ID"),
        ({"MLFLOW_VAULT_USERNAME": "x"}, "MLFLOW_VAULT_PASSWORD"),
        ({"MLFLOW_VAULT_PASSWORD": "x"}, "MLFLOW_VAULT_USERNAME"),
        ({"MLFLOW_VAULT_ROLE": "x"}, "MLFLOW_VAULT_JWT_PATH"),
        ({"MLFLOW_VAULT_JWT_PATH": "/x"}, "MLFLOW_VAULT_ROLE"),
        ({"VAULT_CLIENT_CERT": "/x"}, "VAULT_CLIENT_KEY"),
    ],
)
def test_nor_one_that_was_begun(use_vault, token_file, begun, lacking) -> None:
    token_file.write_text("s.stale")
    use_vault(VAULT_TOKEN=None, **begun)
    error = failure()
    assert error.code == "config.missing"
    assert lacking in error.message


@pytest.mark.parametrize(
    ("method", "lacking"),
    [
        ("approle", "VAULT_ROLE_ID"),
        ("kubernetes", "MLFLOW_VAULT_ROLE"),
        ("jwt", "MLFLOW_VAULT_JWT_PATH"),
        ("userpass", "MLFLOW_VAULT_USERNAME and MLFLOW_VAULT_PASSWORD"),
        ("ldap", "MLFLOW_VAULT_USERNAME and MLFLOW_VAULT_PASSWORD"),
        ("cert", "VAULT_CLIENT_CERT and VAULT_CLIENT_KEY"),
        ("agent", "VAULT_AGENT_ADDR"),
    ],
)
def test_a_method_that_is_asked_for_says_what_it_needs(use_vault, method, lacking) -> None:
    use_vault(MLFLOW_VAULT_AUTH_METHOD=method)
    error = failure()
    assert error.code == "config.missing"
    assert lacking in error.message


def test_without_any_login(use_vault) -> None:
    use_vault(VAULT_TOKEN=None)
    error = failure()
    assert error.code == "config.missing"
    assert "VAULT_TOKEN" in error.message


def test_a_method_that_does_not_exist(use_vault) -> None:
    use_vault(MLFLOW_VAULT_AUTH_METHOD="kubernets")
    error = failure()
    assert error.code == "config.invalid_value"
    assert "kubernetes" in error.hint


def test_the_file_is_asked_for_and_missing(use_vault, token_file) -> None:
    use_vault(VAULT_TOKEN=None, MLFLOW_VAULT_AUTH_METHOD="token")
    error = failure()
    assert error.code == "config.file"
    assert str(token_file) in error.message


EVERYTHING = {
    "VAULT_TOKEN": "t",
    "VAULT_ROLE_ID": "r",
    "MLFLOW_VAULT_ROLE": "mlflow",
    "MLFLOW_VAULT_JWT_PATH": "jwt",
    "MLFLOW_VAULT_USERNAME": "u",
    "MLFLOW_VAULT_PASSWORD": "p",
    "VAULT_AGENT_ADDR": "agent",
}


@pytest.mark.parametrize(
    ("without", "reason", "asked"),
    [
        ((), "VAULT_TOKEN is set", "/v1/secret/data/mlflow/auth"),
        (("VAULT_TOKEN",), "VAULT_ROLE_ID is set", "/v1/auth/approle/login"),
        (("VAULT_TOKEN", "VAULT_ROLE_ID"), "MLFLOW_VAULT_JWT_PATH is set", "/v1/auth/jwt/login"),
        (
            ("VAULT_TOKEN", "VAULT_ROLE_ID", "MLFLOW_VAULT_JWT_PATH", "MLFLOW_VAULT_ROLE"),
            "MLFLOW_VAULT_USERNAME is set",
            "/v1/auth/userpass/login/u",
        ),
        (
            tuple(name for name in EVERYTHING if name != "VAULT_AGENT_ADDR"),
            "VAULT_AGENT_ADDR is set",
            "/v1/secret/data/mlflow/auth",
        ),
    ],
)
def test_auto_takes_the_first_that_is_configured_and_says_why(
    vault_like: VaultLike, configure, tmp_path, caplog, without, reason, asked
) -> None:
    (tmp_path / "jwt").write_text("a.b.c")
    chosen = {name: value for name, value in EVERYTHING.items() if name not in without}
    if "MLFLOW_VAULT_JWT_PATH" in chosen:
        chosen["MLFLOW_VAULT_JWT_PATH"] = str(tmp_path / "jwt")
    if "VAULT_AGENT_ADDR" in chosen:
        chosen["VAULT_AGENT_ADDR"] = vault_like.url
    configure(vault_like.settings(MLFLOW_SECRETS_MAX_RETRIES="0"), VAULT_TOKEN=None)
    configure(chosen)
    caplog.set_level(logging.INFO, "mlflow_secrets_auth")
    try:
        headers_for(URL)
    except SecretsAuthError as error:
        # The look-alike gives no tokens.
        assert error.code == "vault.unexpected_answer"
    assert vault_like.requests[0].path == asked
    records = [record for record in caplog.records if getattr(record, "event", "") == "login_method"]
    assert [record.reason for record in records] == [reason]
    assert records[0].name == "mlflow_secrets_auth.vault"


# AppRole, with a wrapped secret id


@pytest.fixture
def wrapped(bao: OpenBao, path: str, use_vault) -> dict[str, str]:
    """Settings with a wrapping token that gives the secret id of a role that may read the secret."""
    bao.put_secret(path, token="abc")
    settings = wrapped_secret_id(bao, read_policy(path))
    use_vault(VAULT_TOKEN=None, **settings)
    return settings


def wrapped_secret_id(bao: OpenBao, rules: str, prefix: str = "") -> dict[str, str]:
    name, role_id = new_role(bao, "approle", rules, prefix)
    token = wrap(bao, "POST", f"{prefix}auth/approle/role/{name}/secret-id")
    return {"VAULT_ROLE_ID": role_id, "MLFLOW_VAULT_WRAPPED_SECRET_ID": token}


def wrap(bao: OpenBao, method: str, path: str, ttl: str = "5m") -> str:
    """The wrapping token for the answer to this request."""
    request = urllib.request.Request(
        f"{bao.url}/v1/{path}", method=method, headers={"X-Vault-Token": bao.root_token, "X-Vault-Wrap-TTL": ttl}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return str(json.load(answer)["wrap_info"]["token"])


def test_a_wrapped_secret_id_is_unwrapped_once_for_every_later_login(bao, wrapped, loopback, configure) -> None:
    loopback.rule = passed_on(bao)
    configure(VAULT_ADDR=loopback.url, MLFLOW_VAULT_TTL_SEC="0")
    assert headers_for(URL) == ABC
    bao.api("POST", "sys/leases/revoke-prefix/auth/approle/login", {})
    assert headers_for(URL) == ABC
    # Other settings have a login of their own, and still the same secret id.
    configure(MLFLOW_VAULT_TTL_SEC="100")
    assert headers_for(URL) == ABC
    asked = [request.path.removeprefix("/v1/") for request in loopback.requests]
    assert asked[:3] == ["sys/wrapping/lookup", "sys/wrapping/unwrap", "auth/approle/login"]
    assert asked.count("sys/wrapping/unwrap") == 1
    assert asked.count("auth/approle/login") == 3
    unwrap = loopback.requests[1]
    assert unwrap.headers["x-vault-token"] == wrapped["MLFLOW_VAULT_WRAPPED_SECRET_ID"]
    assert unwrap.body == b""


def test_somebody_else_unwrapped_it(bao, wrapped) -> None:
    bao.api("POST", "sys/wrapping/unwrap", token=wrapped["MLFLOW_VAULT_WRAPPED_SECRET_ID"])
    error = failure()
    assert error.code == "vault.already_unwrapped"
    assert "possible interception" in error.message
    assert wrapped["MLFLOW_VAULT_WRAPPED_SECRET_ID"] not in str(error)


@pytest.mark.parametrize("fake", ["secret", "another_mount"])
def test_a_wrapping_token_made_elsewhere_is_not_unwrapped(bao, wrapped, configure, fake) -> None:
    if fake == "secret":
        # A stored secret whose path ends like the right one.
        bao.put_secret("auth/approle/role/x/secret-id", secret_id="planted")
        token = wrap(bao, "GET", "secret/data/auth/approle/role/x/secret-id")
    else:
        mount = f"other-{uuid.uuid4().hex}"
        name, _ = new_role(bao, mount, "")
        token = wrap(bao, "POST", f"auth/{mount}/role/{name}/secret-id")
    configure(MLFLOW_VAULT_WRAPPED_SECRET_ID=token)
    assert failure().code == "vault.wrapping_origin"
    # It is still good.
    assert bao.api("POST", "sys/wrapping/unwrap", token=token)["data"]


def test_both_a_secret_id_and_a_wrapped_one(use_vault) -> None:
    use_vault(VAULT_TOKEN=None, VAULT_ROLE_ID="r", VAULT_SECRET_ID="s", MLFLOW_VAULT_WRAPPED_SECRET_ID="w")
    assert failure().code == "config.conflict"


def test_doctor_looks_a_wrapping_token_up_and_never_burns_it(bao, wrapped, loopback) -> None:
    command = [script("mlflow-secrets-auth"), "doctor", "--json"]
    for dry_run in ([], ["--dry-run", loopback.url]):
        done = subprocess.run([*command, *dry_run], capture_output=True, text=True, timeout=30, check=False)
        found = {finding["code"]: finding for finding in json.loads(done.stdout)["findings"]}
        assert found["login.single_use"]["status"] == "pass"
        assert "auth/approle/role/" in found["login.single_use"]["message"]
        assert found["secret.readable"]["status"] == "skip"
    assert found["server.accepts"]["status"] == "skip"
    assert loopback.header("Authorization") == [None]
    assert headers_for(URL) == ABC
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert "vault.already_unwrapped" in done.stdout


FORKING = """
import json, os
from mlflow_secrets_auth import headers_for
mine = headers_for("https://mlflow.example.com")
read, write = os.pipe()
if os.fork() == 0:
    # Other settings, so a login of its own.
    os.environ["MLFLOW_VAULT_TTL_SEC"] = "100"
    os.write(write, json.dumps(headers_for("https://mlflow.example.com")).encode())
    os._exit(0)
os.wait()
print(json.dumps([mine, json.loads(os.read(read, 10000))]))
"""


def test_an_unwrapped_secret_id_survives_a_fork(wrapped) -> None:
    assert run(FORKING) == [ABC, ABC]


UNPICKLING = """
import json, pickle, sys
from mlflow_secrets_auth import SecretsAuthError
import requests
auth = pickle.loads(bytes.fromhex(sys.argv[1]))
try:
    auth(requests.Request("GET", "https://mlflow.example.com").prepare())
    print(json.dumps(None))
except SecretsAuthError as error:
    print(json.dumps([error.code, str(error)]))
"""


def test_a_pickled_copy_says_that_it_cant_use_the_unwrapped_id(wrapped) -> None:
    auth = SecretsAuth()
    assert headers_for(URL) == ABC
    copy = pickle.dumps(auth)
    for value in wrapped.values():
        assert value.encode() not in copy
    code, text = run(UNPICKLING, copy.hex())
    assert code == "vault.already_unwrapped"
    assert "a copy or a later run can't use it again" in text


# kubernetes and jwt


@pytest.fixture
def jwt(bao: OpenBao, path: str, tmp_path: Path, use_vault) -> Iterator[tuple[Signer, Path]]:
    """OpenBao trusts the signer; the settings name the file."""
    bao.put_secret(path, token="abc")
    signer, file, mount = Signer(), tmp_path / "jwt", enable_auth(bao, "jwt")
    bao.api("POST", f"auth/{mount}/config", {"jwt_validation_pubkeys": [signer.public_pem]})
    role = {
        "role_type": "jwt",
        "bound_audiences": ["vault"],
        "user_claim": "sub",
        "token_policies": [new_policy(bao, read_policy(path))],
        "token_ttl": "10m",
    }
    bao.api("POST", f"auth/{mount}/role/mlflow", role)
    use_vault(
        VAULT_TOKEN=None,
        MLFLOW_VAULT_ROLE="mlflow",
        MLFLOW_VAULT_JWT_PATH=str(file),
        MLFLOW_VAULT_AUTH_MOUNT=mount,
        MLFLOW_VAULT_TTL_SEC="0",
    )
    yield signer, file


def test_a_signed_token_logs_in_and_its_file_is_read_anew(bao, jwt, configure) -> None:
    signer, file = jwt
    file.write_text(signer.token(aud="vault", sub="ci") + "\n")
    assert headers_for(URL) == ABC
    # The login is reused, whatever happens to the file.
    file.write_text("canary.of.nobody")
    assert headers_for(URL) == ABC
    mount = os.environ["MLFLOW_VAULT_AUTH_MOUNT"]
    bao.api("POST", f"sys/leases/revoke-prefix/auth/{mount}/login", {})
    error = failure()
    assert error.code == "vault.login_refused"
    assert f"jwt at auth/{mount} as role mlflow" in error.message
    assert "canary" not in str(error)
    file.write_text(signer.token(aud="vault", sub="ci"))
    refresh()


@pytest.mark.parametrize("what", ["expired", "audience", "key"])
def test_a_signed_token_that_is_not_accepted(jwt, what) -> None:
    signer, file = jwt
    life = -300 if what == "expired" else 300
    token = (Signer() if what == "key" else signer).token(life, aud="x" if what == "audience" else "vault", sub="ci")
    file.write_text(token)
    error = failure()
    assert error.code == "vault.login_refused"
    assert "audience" in error.hint
    assert token not in str(error)


@pytest.mark.parametrize("content", [None, "", "two words"])
def test_a_file_that_holds_no_token(jwt, content) -> None:
    _, file = jwt
    if content is not None:
        file.write_text(content)
    error = failure()
    assert error.code == "config.file"
    assert str(file) in error.message


def test_kubernetes_asks_the_cluster(bao, use_vault, path, tmp_path) -> None:
    bao.put_secret(path, token="abc")
    signer, file, mount = Signer(), tmp_path / "token", enable_auth(bao, "kubernetes")
    with Kubernetes() as cluster:
        config = {
            "kubernetes_host": cluster.url,
            "pem_keys": [signer.public_pem],
            "token_reviewer_jwt": signer.token(sub="reviewer"),
            "disable_local_ca_jwt": True,
            "disable_iss_validation": True,
            "kubernetes_ca_cert": trustme.CA().cert_pem.bytes().decode(),
        }
        bao.api("POST", f"auth/{mount}/config", config)
        role = {
            "bound_service_account_names": ["mlflow"],
            "bound_service_account_namespaces": ["default"],
            "token_policies": [new_policy(bao, read_policy(path))],
        }
        bao.api("POST", f"auth/{mount}/role/reader", role)
        use_vault(
            VAULT_TOKEN=None,
            MLFLOW_VAULT_AUTH_METHOD="kubernetes",
            MLFLOW_VAULT_ROLE="reader",
            MLFLOW_VAULT_JWT_PATH=str(file),
            MLFLOW_VAULT_AUTH_MOUNT=mount,
        )
        file.write_text(cluster.service_account(signer, "mlflow"))
        assert headers_for(URL) == ABC
        assert cluster.requests[0].path == "/apis/authentication.k8s.io/v1/tokenreviews"
        # Another service account may not have the role.
        file.write_text(cluster.service_account(signer, "other"))
        use_vault(VAULT_TOKEN=None, MLFLOW_VAULT_TTL_SEC="100")
        error = failure()
        assert error.code == "vault.login_refused"
        assert f"kubernetes at auth/{mount} as role reader" in error.message


# userpass, ldap, cert


@pytest.mark.parametrize("method", ["userpass", "ldap"])
def test_name_and_password(bao, use_vault, path, method) -> None:
    # OpenBao has no LDAP method any more. LDAP's login is the same request, so userpass stands in for it on the
    # mount and with the method that users of LDAP configure.
    bao.put_secret(path, token="abc")
    mount = enable_auth(bao, "userpass", method)
    user, password = f"ci-{uuid.uuid4().hex}", " canary password "
    policies = [new_policy(bao, read_policy(path))]
    bao.api("POST", f"auth/{mount}/users/{user}", {"password": password, "token_policies": policies})
    use_vault(
        VAULT_TOKEN=None,
        MLFLOW_VAULT_AUTH_METHOD=method,
        MLFLOW_VAULT_USERNAME=user,
        MLFLOW_VAULT_PASSWORD=password,
    )
    assert headers_for(URL) == ABC
    use_vault(VAULT_TOKEN=None, MLFLOW_VAULT_PASSWORD="canary-wrong")
    error = failure()
    assert error.code == "vault.login_refused"
    assert f"{method} at auth/{mount} as user {user}" in error.message
    assert "canary" not in str(error)


@pytest.fixture(scope="module")
def tls_bao(server_folder: Path) -> Iterator[TlsBao]:
    with TlsBao(server_folder) as server:
        yield server


def test_a_tls_certificate(tls_bao, use_vault, path) -> None:
    tls_bao.put_secret(path, token="abc")
    enable_auth(tls_bao, "cert", "cert")
    for role, rules in (("mlflow", read_policy(path)), ("another", read_policy("other"))):
        certificate = {
            "certificate": Path(tls_bao.ca_file).read_text(),
            "allowed_common_names": ["mlflow-client"],
            "token_policies": [new_policy(tls_bao, rules)],
        }
        tls_bao.api("POST", f"auth/cert/certs/{role}", certificate)
    shared = {
        "VAULT_TOKEN": None,
        "VAULT_ADDR": tls_bao.tls_url,
        "VAULT_CACERT": tls_bao.ca_file,
        "VAULT_TLS_SERVER_NAME": TlsBao.NAME,
    }
    use_vault(**shared, **tls_bao.client_certificate("mlflow-client"), MLFLOW_VAULT_ROLE="mlflow")
    assert headers_for(URL) == ABC
    use_vault(**shared, MLFLOW_VAULT_ROLE="another")
    assert failure().code == "vault.permission_denied"
    use_vault(**shared, **tls_bao.client_certificate("stranger"), MLFLOW_VAULT_ROLE="mlflow")
    error = failure()
    assert error.code == "vault.login_refused"
    assert "TLS certificate at auth/cert as role mlflow" in error.message


def test_a_certificate_needs_tls(bao, use_vault) -> None:
    use_vault(VAULT_TOKEN=None, VAULT_CLIENT_CERT="/x", VAULT_CLIENT_KEY="/y")
    error = failure()
    assert error.code == "config.invalid_value"
    assert "https" in error.hint


# agent


@pytest.fixture
def proxy(bao: OpenBao, path: str, server_folder: Path) -> Iterator[BaoProxy]:
    bao.put_secret(path, token="abc")
    with BaoProxy(server_folder, bao, enable_approle(bao, "approle", read_policy(path))) as server:
        yield server


def test_an_agent_needs_no_token_of_ours_on_tcp_and_unix_socket(proxy, use_vault) -> None:
    for address in (proxy.url, f"unix://{proxy.socket}"):
        use_vault(VAULT_TOKEN=None, VAULT_ADDR=None, VAULT_AGENT_ADDR=address)
        assert headers_for(URL) == ABC
        use_vault(VAULT_TOKEN=None, VAULT_ADDR=None, MLFLOW_VAULT_SECRET_PATH="secret/other")
        error = failure()
        assert error.code == "vault.permission_denied"
        assert "the token of the Vault agent" in error.message
        use_vault()


def test_an_agent_that_is_not_there(use_vault, tmp_path) -> None:
    for address in (f"http://127.0.0.1:{free_port()}", f"unix://{tmp_path}/socket"):
        use_vault(VAULT_TOKEN=None, VAULT_ADDR=None, VAULT_AGENT_ADDR=address)
        error = failure()
        assert error.code == "vault.unreachable"
        assert "VAULT_AGENT_ADDR" in error.hint


@pytest.mark.parametrize("address", ["unix://relative", "ftp://127.0.0.1", "127.0.0.1:8100"])
def test_an_address_of_an_agent_that_is_none(use_vault, address) -> None:
    use_vault(VAULT_TOKEN=None, VAULT_AGENT_ADDR=address)
    assert failure().code == "config.invalid_value"


def test_a_login_of_ours_through_an_agent(bao, vault_like, configure) -> None:
    configure(vault_like.settings(VAULT_AGENT_ADDR=vault_like.url), VAULT_ADDR=None)
    headers_for(URL)
    assert vault_like.header("X-Vault-Token") == ["vault-token"]


# Namespaces


@pytest.fixture(scope="module")
def namespace(bao: OpenBao) -> str:
    """A namespace with KV version 2 at ``secret/``."""
    name = f"team-{uuid.uuid4().hex[:8]}"
    bao.api("POST", f"sys/namespaces/{name}", {})
    bao.api("POST", f"{name}/sys/mounts/secret", {"type": "kv", "options": {"version": "2"}})
    return name


@pytest.mark.parametrize("form", ["{}", "{}/", "/{}"])
def test_secret_and_login_in_one_namespace(bao, use_vault, path, namespace, form) -> None:
    bao.api("POST", f"{namespace}/secret/data/{path}", {"data": {"token": "abc"}})
    role = enable_approle(bao, "approle", read_policy(path), f"{namespace}/")
    use_vault(VAULT_TOKEN=None, **role, VAULT_NAMESPACE=form.format(namespace))
    assert headers_for(URL) == ABC


def test_a_login_in_another_namespace_than_the_secret(bao, use_vault, path, namespace) -> None:
    bao.api("POST", f"{namespace}/secret/data/{path}", {"data": {"token": "abc"}})
    role = enable_approle(bao, "approle", f'path "{namespace}/secret/data/{path}" {{ capabilities = ["read"] }}')
    use_vault(VAULT_TOKEN=None, **role, VAULT_NAMESPACE=namespace, MLFLOW_VAULT_AUTH_NAMESPACE="root")
    assert headers_for(URL) == ABC
    use_vault(VAULT_TOKEN=None, MLFLOW_VAULT_AUTH_NAMESPACE=None)
    error = failure()
    assert error.code == "vault.login_refused"
    assert f"in namespace {namespace}" in error.message


def test_a_wrapped_secret_id_in_a_namespace(bao, use_vault, path, namespace) -> None:
    bao.api("POST", f"{namespace}/secret/data/{path}", {"data": {"token": "abc"}})
    use_vault(VAULT_TOKEN=None, **wrapped_secret_id(bao, read_policy(path), f"{namespace}/"), VAULT_NAMESPACE=namespace)
    assert headers_for(URL) == ABC


def test_a_namespace_that_does_not_exist(bao, use_vault, path) -> None:
    for login in ({}, {"VAULT_TOKEN": None, **enable_approle(bao, "approle", read_policy(path))}):
        use_vault(**login, VAULT_NAMESPACE="no-such-team")
        error = failure()
        assert error.code == "vault.wrong_namespace"
        assert "no-such-team" in error.message


def test_a_denial_in_a_namespace_is_no_refused_token(bao, use_vault, path, namespace) -> None:
    # The token is good, but its own namespace is the root.
    use_vault(VAULT_TOKEN=limited_token(bao, read_policy(path)), VAULT_NAMESPACE=namespace)
    error = failure()
    assert error.code == "vault.permission_denied"
    assert f"in namespace {namespace}" in error.message


# Token life


def test_a_token_limited_in_uses(bao, use_vault, path) -> None:
    bao.put_secret(path, token="abc")
    role = enable_approle(bao, "approle", read_policy(path), token_num_uses=2)
    use_vault(
        VAULT_TOKEN=None,
        **role,
        MLFLOW_VAULT_TTL_SEC="0",
        MLFLOW_VAULT_KV_MOUNT="secret",
        MLFLOW_VAULT_KV_VERSION="2",
    )
    for _ in range(5):
        assert headers_for(URL) == ABC


def test_a_login_is_renewed_while_it_can_be(bao, use_vault, path) -> None:
    bao.put_secret(path, token="abc")
    rules = f'{read_policy(path)} path "auth/token/renew-self" {{ capabilities = ["update"] }}'
    role = enable_approle(bao, "approle", rules, token_ttl="2s", token_max_ttl="1m")
    use_vault(VAULT_TOKEN=None, **role)
    assert headers_for(URL) == ABC
    for _ in range(2):
        # More than half of the lease, and both together more than all of it.
        time.sleep(1.1)
        refresh()
    assert tokens_of(bao, role["VAULT_ROLE_ID"]) == 1


SHARING = """
import json, os
from mlflow_secrets_auth import headers_for
headers_for("https://mlflow.example.com")
if os.fork() == 0:
    headers_for("https://mlflow.example.com")
    os._exit(0)
print(json.dumps(os.waitstatus_to_exitcode(os.wait()[1])))
"""


def test_a_forked_child_goes_on_with_the_login(bao, use_vault, path) -> None:
    bao.put_secret(path, token="abc")
    role = enable_approle(bao, "approle", read_policy(path))
    use_vault(VAULT_TOKEN=None, **role, MLFLOW_VAULT_TTL_SEC="0")
    assert run(SHARING) == 0
    assert tokens_of(bao, role["VAULT_ROLE_ID"]) == 1


def test_a_batch_token(bao, use_vault, path) -> None:
    bao.put_secret(path, token="abc")
    use_vault(VAULT_TOKEN=None, **enable_approle(bao, "approle", read_policy(path), token_type="batch"))
    assert headers_for(URL) == ABC


def test_a_token_without_the_default_policy(bao, use_vault, path) -> None:
    bao.put_secret(path, token="abc")
    role = enable_approle(bao, "approle", read_policy(path), token_no_default_policy=True)
    use_vault(VAULT_TOKEN=None, **role)
    assert headers_for(URL) == ABC
    # It may not even look itself up; that does not make it a refused one.
    use_vault(VAULT_TOKEN=None, MLFLOW_VAULT_SECRET_PATH="secret/other")
    assert failure().code == "vault.permission_denied"


def test_a_denial_that_a_fresh_login_cures(bao, use_vault, path) -> None:
    bao.put_secret(path, token="abc")
    name, role_id = new_role(bao, "approle", read_policy("other"))
    secret_id = bao.api("POST", f"auth/approle/role/{name}/secret-id", {})["data"]["secret_id"]
    use_vault(VAULT_TOKEN=None, VAULT_ROLE_ID=role_id, VAULT_SECRET_ID=secret_id)
    assert failure().code == "vault.permission_denied"
    assert tokens_of(bao, role_id) == 1
    # A token keeps the policies that its role had at the login.
    bao.api("POST", f"auth/approle/role/{name}", {"token_policies": [new_policy(bao, read_policy(path))]})
    refresh()
    assert headers_for(URL) == ABC
    assert tokens_of(bao, role_id) == 2


def test_a_fresh_login_that_is_refused_leaves_the_old_one(bao, use_vault, path) -> None:
    bao.put_secret(path, token="abc")
    name, role_id = new_role(bao, "approle", read_policy(path), secret_id_num_uses=1)
    secret_id = bao.api("POST", f"auth/approle/role/{name}/secret-id", {})["data"]["secret_id"]
    use_vault(VAULT_TOKEN=None, VAULT_ROLE_ID=role_id, VAULT_SECRET_ID=secret_id, MLFLOW_VAULT_TTL_SEC="0")
    assert headers_for(URL) == ABC
    policy = bao.api("GET", f"auth/approle/role/{name}")["data"]["token_policies"][0]
    bao.api("PUT", f"sys/policies/acl/{policy}", {"policy": read_policy("other")})
    assert failure().code == "vault.permission_denied"
    bao.api("PUT", f"sys/policies/acl/{policy}", {"policy": read_policy(path)})
    refresh()


def test_a_login_that_wants_a_second_factor(loopback, use_vault) -> None:
    login = {"request_id": "r", "auth": {"client_token": "", "mfa_requirement": {"mfa_request_id": "m"}}}
    loopback.rule = lambda _: Answer.json(login)
    use_vault(VAULT_TOKEN=None, VAULT_ADDR=loopback.url, VAULT_ROLE_ID="r", VAULT_SECRET_ID="s")
    error = failure()
    assert error.code == "vault.login_refused"
    assert "second factor" in error.message


def test_a_login_method_that_is_not_mounted(bao, use_vault) -> None:
    use_vault(VAULT_TOKEN=None, VAULT_ROLE_ID="r", VAULT_SECRET_ID="s", MLFLOW_VAULT_AUTH_MOUNT="no-such-mount")
    error = failure()
    assert error.code == "vault.login_refused"
    assert "MLFLOW_VAULT_AUTH_MOUNT" in error.hint


# Secrecy

SECRETS = {
    "approle": {"VAULT_ROLE_ID": "r", "VAULT_SECRET_ID": "canary-secret-id"},
    "wrapped": {"VAULT_ROLE_ID": "r", "MLFLOW_VAULT_WRAPPED_SECRET_ID": "canary-wrapping-token"},
    "userpass": {"MLFLOW_VAULT_USERNAME": "u", "MLFLOW_VAULT_PASSWORD": "canary-password"},
    "jwt": {"MLFLOW_VAULT_ROLE": "r"},
    "file": {"MLFLOW_VAULT_AUTH_METHOD": "token"},
}


@pytest.mark.parametrize("method", SECRETS)
@pytest.mark.parametrize("status", [200, 400, 403, 500])
def test_no_output_holds_what_a_login_is_made_of(
    loopback, use_vault, tmp_path, token_file, caplog, capfd, method, status
) -> None:
    """S1: a canary in every secret of a login, and in every token that Vault gives."""
    caplog.set_level(logging.DEBUG)
    token_file.write_text("canary-of-the-file")
    (tmp_path / "jwt").write_text("canary.signed.token")
    more = {"MLFLOW_VAULT_JWT_PATH": str(tmp_path / "jwt")} if method == "jwt" else {}

    def rule(request):
        if request.path.endswith("/unwrap"):
            return Answer.json({"request_id": "r", "data": {"secret_id": "canary-unwrapped", "x": "canary-beside-it"}})
        if request.path.endswith("/lookup"):
            found = {"creation_path": "auth/approle/role/r/secret-id", "creation_time": "", "creation_ttl": 1}
            return Answer.json({"request_id": "r", "data": found})
        if "/login" in request.path:
            body = {"request_id": "r", "auth": {"client_token": "canary-client-token", "lease_duration": 1}}
            return Answer.json({**body, "errors": ["canary-in-an-error"]}, status)
        return Answer.json({"errors": ["canary-in-an-error"]}, 403)

    loopback.rule = rule
    use_vault(VAULT_TOKEN=None, VAULT_ADDR=loopback.url, **SECRETS[method], **more)
    error = failure()
    doctor = [script("mlflow-secrets-auth"), "doctor"]
    shown = [repr(error), str(error), caplog.text, *map(repr, (vars(record) for record in caplog.records))]
    for command in (doctor, [*doctor, "--json"], [script("mlflow-secrets-auth"), "info"]):
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        shown += [done.stdout, done.stderr]
    shown += capfd.readouterr()
    for text in shown:
        assert "canary" not in text
    # They were in use.
    assert any(b"canary" in request.body or "canary" in str(request.headers) for request in loopback.requests)
