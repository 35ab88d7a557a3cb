"""The Vault provider against a real OpenBao server."""

from __future__ import annotations

import uuid

import pytest

from loopback import Answer, Loopback
from mlflow_secrets_auth import cache_info, headers_for
from servers import free_port
from vaults import URL, enable_approle, failure, limited_token, tokens_of


@pytest.mark.parametrize("form", ["secret/{}", "secret/data/{}", "/secret/{}/", "v1/secret/data/{}"])
def test_kv2_is_read_by_both_documented_forms_of_the_path(bao, use_vault, path, form) -> None:
    bao.put_secret(path, token="abc")
    use_vault(MLFLOW_VAULT_SECRET_PATH=form.format(path))
    assert headers_for(URL) == {"Authorization": "Bearer abc"}


@pytest.mark.parametrize("mount", ["kv-one-{}", "nested/deep/kv-{}"])
@pytest.mark.parametrize("version", ["1", "2"])
def test_any_mount_of_either_version_nested_ones_too(bao, use_vault, path, mount, version) -> None:
    mount = mount.format(uuid.uuid4().hex)
    bao.api("POST", f"sys/mounts/{mount}", {"type": "kv", "options": {"version": version}})
    if version == "2":
        bao.api("POST", f"{mount}/data/{path}", {"data": {"token": "abc"}})
    else:
        bao.api("POST", f"{mount}/{path}", {"token": "abc"})
    use_vault(MLFLOW_VAULT_SECRET_PATH=f"{mount}/{path}")
    assert headers_for(URL) == {"Authorization": "Bearer abc"}


@pytest.mark.parametrize("version", ["1", "2"])
def test_a_token_that_may_only_read_the_secret_is_enough(bao, use_vault, path, version) -> None:
    mount = f"narrow-{uuid.uuid4().hex}"
    bao.api("POST", f"sys/mounts/{mount}", {"type": "kv", "options": {"version": version}})
    full = f"{mount}/data/{path}" if version == "2" else f"{mount}/{path}"
    fields = {"token": "abc"}
    bao.api("POST", full, {"data": fields} if version == "2" else fields)
    token = limited_token(bao, f'path "{full}" {{ capabilities = ["read"] }}', no_default_policy=True)
    use_vault(
        VAULT_TOKEN=token,
        MLFLOW_VAULT_SECRET_PATH=f"{mount}/{path}",
        MLFLOW_VAULT_KV_MOUNT=mount,
        MLFLOW_VAULT_KV_VERSION=version,
    )
    assert headers_for(URL) == {"Authorization": "Bearer abc"}


def test_approle_logs_in_once_and_reuses_the_login(bao, use_vault, path) -> None:
    bao.put_secret(path, token="abc")
    role = enable_approle(bao, "approle", f'path "secret/data/{path}" {{ capabilities = ["read"] }}')
    use_vault(VAULT_TOKEN=None, **role, MLFLOW_VAULT_TTL_SEC="0")
    for _ in range(5):
        assert headers_for(URL) == {"Authorization": "Bearer abc"}
    assert tokens_of(bao, role["VAULT_ROLE_ID"]) == 1


def test_approle_on_another_mount(bao, use_vault, path) -> None:
    bao.put_secret(path, token="abc")
    mount = f"ci/approle-{uuid.uuid4().hex}"
    role = enable_approle(bao, mount, f'path "secret/data/{path}" {{ capabilities = ["read"] }}')
    use_vault(VAULT_TOKEN=None, **role, MLFLOW_VAULT_AUTH_MOUNT=mount)
    assert headers_for(URL) == {"Authorization": "Bearer abc"}


def test_a_revoked_login_is_made_again(bao, use_vault, path) -> None:
    bao.put_secret(path, token="abc")
    role = enable_approle(bao, "approle", f'path "secret/data/{path}" {{ capabilities = ["read"] }}')
    use_vault(VAULT_TOKEN=None, **role, MLFLOW_VAULT_TTL_SEC="0")
    assert headers_for(URL) == {"Authorization": "Bearer abc"}
    bao.api("POST", "sys/leases/revoke-prefix/auth/approle/login", {})
    assert headers_for(URL) == {"Authorization": "Bearer abc"}


def test_the_secret_id_is_wrong(bao, use_vault, path) -> None:
    role = enable_approle(bao, "approle", "")
    use_vault(VAULT_TOKEN=None, VAULT_ROLE_ID=role["VAULT_ROLE_ID"], VAULT_SECRET_ID="wrong-canary-secret-id")
    error = failure()
    assert error.code == "vault.login_refused"
    assert "AppRole at auth/approle" in error.message
    assert "wrong-canary-secret-id" not in str(error)


def test_nothing_at_the_path(use_vault, path) -> None:
    use_vault()
    error = failure()
    assert error.code == "vault.not_found"
    assert f"secret/data/{path}" in error.message


def test_no_such_mount(bao, use_vault) -> None:
    use_vault(MLFLOW_VAULT_SECRET_PATH="mlflow/auth")
    error = failure()
    assert error.code == "vault.not_found"
    assert "mlflow/data/auth or mlflow/auth" in error.message
    assert "no engine is mounted at mlflow/" in error.message
    assert "begin with the mount, as in secret/mlflow/auth" in error.hint


def test_a_deleted_version(bao, use_vault, path) -> None:
    bao.put_secret(path, token="abc")
    bao.api("DELETE", f"secret/data/{path}")
    use_vault()
    assert failure().code == "vault.secret_deleted"


def test_a_refused_token(use_vault) -> None:
    use_vault(VAULT_TOKEN="s.canary-unknown-token")
    error = failure()
    assert error.code == "vault.token_refused"
    assert "canary" not in str(error)


def test_an_expired_token(bao, use_vault, path) -> None:
    bao.put_secret(path, token="abc")
    token = bao.new_token("root", ttl="1s", explicit_max_ttl="1s")
    bao.api("POST", "auth/token/revoke", {"token": token})
    use_vault(VAULT_TOKEN=token)
    assert failure().code == "vault.token_refused"


def test_a_policy_that_does_not_permit_the_path(bao, use_vault, path) -> None:
    bao.put_secret(path, token="abc")
    use_vault(VAULT_TOKEN=limited_token(bao, 'path "secret/data/other" { capabilities = ["read"] }'))
    error = failure()
    assert error.code == "vault.permission_denied"
    assert "read" in error.hint and path in error.hint


def test_a_refused_connection(use_vault) -> None:
    use_vault(VAULT_ADDR=f"http://127.0.0.1:{free_port()}")
    error = failure()
    assert error.code == "vault.unreachable"
    assert "connection refused" in error.message


@pytest.mark.parametrize(
    ("status", "code"),
    [(503, "vault.sealed"), (500, "vault.unavailable"), (429, "vault.throttled"), (418, "vault.unexpected_answer")],
)
def test_other_answers(use_vault, loopback: Loopback, status, code) -> None:
    loopback.rule = lambda _: Answer(status, body=b'{"errors": ["canary-in-the-body"]}')
    use_vault(VAULT_ADDR=loopback.url)
    error = failure()
    assert error.code == code
    assert "canary" not in str(error)


@pytest.mark.parametrize("body", [b"<html>canary</html>", b'{"data": "canary"}', b"x" * (2 << 20)])
def test_an_answer_that_is_not_vaults(use_vault, loopback: Loopback, body) -> None:
    loopback.rule = lambda _: Answer(body=body)
    use_vault(VAULT_ADDR=loopback.url)
    error = failure()
    assert error.code == "vault.unexpected_answer"
    assert "canary" not in str(error)


def test_the_namespace_goes_on_every_request(use_vault, vault_like, configure) -> None:
    configure(vault_like.settings(VAULT_NAMESPACE="team-a"))
    assert headers_for(URL) == {"Authorization": "Bearer first"}
    assert vault_like.header("X-Vault-Namespace") == ["team-a"]
    assert vault_like.header("X-Vault-Request") == ["true"]


def test_an_address_with_a_path_prefix(use_vault, vault_like, configure) -> None:
    configure(vault_like.settings(VAULT_ADDR=vault_like.url + "/behind/proxy/"))
    headers_for(URL)
    assert [request.path for request in vault_like.requests] == ["/behind/proxy/v1/secret/data/mlflow/auth"]


def test_a_lease_shortens_the_ttl(vault_like, configure) -> None:
    vault_like.lease = 100
    configure(vault_like.settings())
    headers_for(URL)
    assert 80 <= cache_info().entries[0].expires_in <= 90
