"""Where a secret is: KV of either version, what can't be asked, versions, and engines that are not KV."""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Iterator
from urllib.parse import quote

import pytest

from loopback import Answer
from mlflow_secrets_auth import cache_info, headers_for, refresh
from servers import OpenBao
from vaults import URL, FakeRedis, enable_approle, failure, limited_token, passed_on, read_policy

ABC = {"Authorization": "Bearer abc"}


@pytest.fixture
def mount(bao: OpenBao, request) -> str:
    """A KV mount of its own, of the version that the test is parametrized with."""
    version = request.param if hasattr(request, "param") else "2"
    name = f"kv{version}-{uuid.uuid4().hex}"
    bao.api("POST", f"sys/mounts/{name}", {"type": "kv", "options": {"version": version}})
    return name


def reader(bao: OpenBao, *paths: str) -> str:
    """A token that may read these paths, and has no other right at all."""
    rules = "\n".join(f'path "{path}" {{ capabilities = ["read"] }}' for path in paths)
    return limited_token(bao, rules, no_default_policy=True)


def hide_mounts(answer_of, status: int = 403):
    """A rule that forbids the question for the mount and passes the rest on."""

    def rule(request):
        if "/sys/internal/ui/mounts" in request.path:
            return Answer.json({"errors": ["permission denied"]}, status)
        return answer_of(request)

    return rule


# The preflight, and what happens without it


def test_the_mount_is_asked_for_once(bao, use_vault, path, loopback) -> None:
    bao.put_secret(path, token="abc")
    loopback.rule = passed_on(bao)
    use_vault(VAULT_ADDR=loopback.url, MLFLOW_VAULT_TTL_SEC="0")
    for _ in range(3):
        assert headers_for(URL) == ABC
    read = f"/v1/secret/data/{path}"
    assert [r.path for r in loopback.requests] == [f"/v1/sys/internal/ui/mounts/secret/{path}", read, read, read]


def test_other_settings_for_the_same_secret_do_not_ask_again(bao, use_vault, path, loopback) -> None:
    bao.put_secret(path, token="abc")
    loopback.rule = passed_on(bao)
    for ttl in ("100", "200", "300"):
        use_vault(VAULT_ADDR=loopback.url, MLFLOW_VAULT_TTL_SEC=ttl)
        assert headers_for(URL) == ABC
    read = f"/v1/secret/data/{path}"
    assert [r.path for r in loopback.requests] == [f"/v1/sys/internal/ui/mounts/secret/{path}", read, read, read]


@pytest.mark.parametrize("status", [403, 404, 405])
@pytest.mark.parametrize("mount", ["1", "2"], indirect=True)
def test_without_the_preflight_version_2_is_tried_then_1_and_remembered(
    bao, use_vault, path, loopback, mount, status
) -> None:
    version_2 = mount.startswith("kv2")
    full = f"{mount}/data/{path}" if version_2 else f"{mount}/{path}"
    bao.api("POST", full, {"data": {"token": "abc"}} if version_2 else {"token": "abc"})
    loopback.rule = hide_mounts(passed_on(bao), status)
    use_vault(
        VAULT_ADDR=loopback.url,
        VAULT_TOKEN=reader(bao, full),
        MLFLOW_VAULT_SECRET_PATH=f"{mount}/{path}",
        MLFLOW_VAULT_TTL_SEC="0",
    )
    assert headers_for(URL) == ABC
    tried = [f"/v1/{mount}/data/{path}", f"/v1/{mount}/{path}"][: 1 if version_2 else 2]
    assert [r.path for r in loopback.requests][1:] == tried
    loopback.requests.clear()
    assert headers_for(URL) == ABC
    assert [r.path for r in loopback.requests] == [f"/v1/{full}"]


@pytest.mark.parametrize("version", ["auto", "2"])
def test_an_explicit_data_path_on_a_nested_mount_needs_no_preflight(bao, use_vault, path, loopback, version) -> None:
    mount = f"nested/deep/kv-{uuid.uuid4().hex}"
    bao.api("POST", f"sys/mounts/{mount}", {"type": "kv", "options": {"version": "2"}})
    bao.api("POST", f"{mount}/data/{path}", {"data": {"token": "abc"}})
    loopback.rule = hide_mounts(passed_on(bao))
    use_vault(VAULT_ADDR=loopback.url, MLFLOW_VAULT_SECRET_PATH=f"{mount}/data/{path}", MLFLOW_VAULT_KV_VERSION=version)
    assert headers_for(URL) == ABC
    assert [r.path for r in loopback.requests][1:] == [f"/v1/{mount}/data/{path}"]


@pytest.mark.parametrize("mount", ["1", "2"], indirect=True)
def test_mount_and_version_in_the_settings_need_one_request(bao, use_vault, path, loopback, mount) -> None:
    version = mount[2]
    full = f"{mount}/data/{path}" if version == "2" else f"{mount}/{path}"
    bao.api("POST", full, {"data": {"token": "abc"}} if version == "2" else {"token": "abc"})
    loopback.rule = passed_on(bao)
    for secret_path in (f"{mount}/{path}", path):
        use_vault(
            VAULT_ADDR=loopback.url,
            VAULT_TOKEN=reader(bao, full),
            MLFLOW_VAULT_SECRET_PATH=secret_path,
            MLFLOW_VAULT_KV_MOUNT=mount,
            MLFLOW_VAULT_KV_VERSION=version,
        )
        loopback.requests.clear()
        assert headers_for(URL) == ABC
        assert [r.path for r in loopback.requests] == [f"/v1/{full}"]


def test_a_mount_that_was_upgraded_is_found_again_in_the_same_fetch(bao, use_vault, path) -> None:
    name = f"upgraded-{uuid.uuid4().hex}"
    bao.api("POST", f"sys/mounts/{name}", {"type": "kv", "options": {"version": "1"}})
    bao.api("POST", f"{name}/{path}", {"token": "abc"})
    use_vault(MLFLOW_VAULT_SECRET_PATH=f"{name}/{path}")
    assert headers_for(URL) == ABC
    bao.api("DELETE", f"sys/mounts/{name}")
    bao.api("POST", f"sys/mounts/{name}", {"type": "kv", "options": {"version": "2"}})
    bao.api("POST", f"{name}/data/{path}", {"data": {"token": "new"}})
    refresh()
    assert headers_for(URL) == {"Authorization": "Bearer new"}


# Paths


@pytest.mark.parametrize(
    ("stored", "asked"),
    [
        ("app/data/auth", "secret/app/data/auth"),
        ("data", "secret/data/data"),
        ("data/auth", "secret/data/data/auth"),
        ("mlflow/database", "secret/mlflow/database"),
        ("with space/ünï", "secret/with space/ünï"),
    ],
)
def test_paths_that_contain_data_or_odd_letters(bao, use_vault, stored, asked) -> None:
    bao.put_secret(quote(stored), token="abc")
    use_vault(MLFLOW_VAULT_SECRET_PATH=asked)
    assert headers_for(URL) == ABC


def test_a_mount_named_data(bao, use_vault, path) -> None:
    if "data/" not in bao.api("GET", "sys/mounts")["data"]:
        bao.api("POST", "sys/mounts/data", {"type": "kv", "options": {"version": "2"}})
    bao.api("POST", f"data/data/{path}", {"data": {"token": "abc"}})
    use_vault(MLFLOW_VAULT_SECRET_PATH=f"data/{path}")
    assert headers_for(URL) == ABC


@pytest.mark.parametrize("bad", ["secret", "secret/../x", "secret//x", "secret/./x", "secret/x?version=1", "secret/#"])
def test_a_path_that_could_be_read_as_another(use_vault, bad) -> None:
    use_vault(MLFLOW_VAULT_SECRET_PATH=bad)
    error = failure()
    assert error.code == "config.invalid_value"
    assert "MLFLOW_VAULT_SECRET_PATH" in error.message


def test_not_found_names_the_path_of_each_version(bao, use_vault, path, loopback) -> None:
    loopback.rule = hide_mounts(passed_on(bao))
    use_vault(VAULT_ADDR=loopback.url)
    error = failure()
    assert error.code == "vault.not_found"
    assert f"secret/data/{path} or secret/{path}" in error.message


def test_a_denied_guess_hints_at_policy_and_mount(bao, use_vault) -> None:
    use_vault(VAULT_TOKEN=limited_token(bao, read_policy("other")), MLFLOW_VAULT_SECRET_PATH="mlflow/auth")
    error = failure()
    assert error.code == "vault.permission_denied"
    assert "`read` on mlflow/data/auth" in error.hint
    assert "if no engine is mounted at mlflow/" in error.hint


def test_the_mount_in_the_settings_does_not_exist(use_vault, path) -> None:
    for version in ("2", "1"):
        use_vault(MLFLOW_VAULT_KV_MOUNT="no-such-mount", MLFLOW_VAULT_SECRET_PATH=path, MLFLOW_VAULT_KV_VERSION=version)
        error = failure()
        assert error.code == "vault.wrong_mount"
        assert "no-such-mount/" in error.message
        assert "MLFLOW_VAULT_KV_MOUNT" in error.hint


def test_the_mount_in_the_settings_is_not_where_the_engine_is(bao, use_vault, path) -> None:
    bao.put_secret(path, token="abc")
    use_vault(MLFLOW_VAULT_KV_MOUNT="secret/mlflow")
    error = failure()
    assert error.code == "vault.wrong_mount"
    assert "secret/mlflow/" in error.message


@pytest.mark.parametrize("fields", [{}, {"token": ""}])
def test_an_empty_secret(bao, use_vault, path, fields) -> None:
    bao.put_secret(path, **fields)
    use_vault()
    assert failure().code == "secret.empty"


# Versions


def test_a_pinned_version(bao, use_vault, path) -> None:
    bao.put_secret(path, token="abc")
    bao.put_secret(path, token="newer")
    use_vault(MLFLOW_VAULT_SECRET_VERSION="1")
    assert headers_for(URL) == ABC
    use_vault(MLFLOW_VAULT_SECRET_VERSION="3")
    error = failure()
    assert error.code == "vault.not_found"
    assert "version 3" in error.message


def test_deleted_and_destroyed_versions(bao, use_vault, path) -> None:
    bao.put_secret(path, token="abc")
    bao.put_secret(path, token="newer")
    bao.api("DELETE", f"secret/data/{path}")
    use_vault()
    error = failure()
    assert error.code == "vault.secret_deleted"
    assert f"version 2 of secret/data/{path}" in error.message
    assert "undelete" in error.hint
    use_vault(MLFLOW_VAULT_SECRET_VERSION="1")
    assert headers_for(URL) == ABC
    bao.api("POST", f"secret/destroy/{path}", {"versions": [1]})
    with pytest.raises(Exception, match=r"vault\.secret_destroyed: version 1 of"):
        refresh()


@pytest.mark.parametrize("mount", ["1"], indirect=True)
def test_a_version_on_an_engine_without_versions(bao, use_vault, path, mount, loopback) -> None:
    bao.api("POST", f"{mount}/{path}", {"token": "abc"})
    use_vault(MLFLOW_VAULT_SECRET_PATH=f"{mount}/{path}", MLFLOW_VAULT_SECRET_VERSION="1")
    error = failure()
    assert error.code == "config.invalid_value"
    assert "MLFLOW_VAULT_SECRET_VERSION" in error.message
    use_vault(MLFLOW_VAULT_SECRET_PATH=f"{mount}/{path}", MLFLOW_VAULT_KV_VERSION="1")
    assert failure().code == "config.invalid_value"
    # Version 1 ignores the question for a version, where nobody told us that it is version 1.
    loopback.rule = hide_mounts(passed_on(bao))
    use_vault(VAULT_ADDR=loopback.url, MLFLOW_VAULT_SECRET_PATH=f"{mount}/{path}", MLFLOW_VAULT_KV_VERSION=None)
    error = failure()
    assert error.code == "config.invalid_value"
    assert f"{mount}/{path} is not on a KV version 2 engine" in error.message


@pytest.mark.parametrize("value", ["0", "-1", "latest", "1.5"])
def test_a_version_that_is_none(use_vault, value) -> None:
    use_vault(MLFLOW_VAULT_SECRET_VERSION=value)
    assert failure().code == "config.invalid_value"


# Engines that are not KV


def test_the_ttl_field_of_version_1_shortens_ours(bao, use_vault, path) -> None:
    name = f"leased-{uuid.uuid4().hex}"
    bao.api("POST", f"sys/mounts/{name}", {"type": "kv", "options": {"version": "1"}})
    bao.api("POST", f"{name}/{path}", {"token": "abc", "ttl": "100s"})
    use_vault(MLFLOW_VAULT_SECRET_PATH=f"{name}/{path}")
    assert headers_for(URL) == ABC
    assert 80 <= cache_info().entries[0].expires_in <= 90


def test_a_ttl_field_of_version_2_is_only_data(bao, use_vault, path) -> None:
    bao.put_secret(path, token="abc", ttl=5)
    use_vault()
    assert headers_for(URL) == ABC
    assert cache_info().entries[0].expires_in > 200


def test_an_identity_token_for_mlflow(bao, use_vault) -> None:
    key = f"key-{uuid.uuid4().hex}"
    bao.api("POST", f"identity/oidc/key/{key}", {"allowed_client_ids": ["*"], "algorithm": "RS256"})
    bao.api("POST", f"identity/oidc/role/{key}", {"key": key, "ttl": "100s", "client_id": "mlflow"})
    # An identity token is for an entity: a token from a login method has one.
    role = enable_approle(bao, "approle", f'path "identity/oidc/token/{key}" {{ capabilities = ["read"] }}')
    use_vault(VAULT_TOKEN=None, **role, MLFLOW_VAULT_SECRET_PATH=f"identity/oidc/token/{key}")
    scheme, token = headers_for(URL)["Authorization"].split()
    assert scheme == "Bearer"
    claims = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
    assert claims["aud"] == "mlflow"
    assert 70 <= cache_info().entries[0].expires_in <= 90


def test_an_engine_that_rejects_the_request(bao, use_vault) -> None:
    key = f"key-{uuid.uuid4().hex}"
    bao.api("POST", f"identity/oidc/key/{key}", {"allowed_client_ids": ["*"]})
    bao.api("POST", f"identity/oidc/role/{key}", {"key": key})
    # The root token has no entity.
    use_vault(MLFLOW_VAULT_SECRET_PATH=f"identity/oidc/token/{key}")
    error = failure()
    assert error.code == "vault.rejected"
    assert "vault read" in error.hint


@pytest.fixture
def database(bao: OpenBao) -> Iterator[str]:
    """OpenBao's database engine in front of a look-alike of Redis; the path that leases a user for 100 s."""
    name = f"database-{uuid.uuid4().hex}"
    with FakeRedis() as redis:
        bao.api("POST", f"sys/mounts/{name}", {"type": "database"})
        config = {
            "plugin_name": "redis-database-plugin",
            "host": "127.0.0.1",
            "port": redis.port,
            "username": "admin",
            "password": "admin",
            "allowed_roles": "*",
        }
        bao.api("POST", f"{name}/config/redis", config)
        role = {"db_name": "redis", "creation_statements": '["+@read"]', "default_ttl": "100s", "max_ttl": "1h"}
        bao.api("POST", f"{name}/roles/mlflow", role)
        yield f"{name}/creds/mlflow"
        bao.api("DELETE", f"sys/mounts/{name}")


def test_a_database_user_is_leased(bao, use_vault, database) -> None:
    use_vault(
        VAULT_TOKEN=limited_token(bao, f'path "{database}" {{ capabilities = ["read"] }}'),
        MLFLOW_VAULT_SECRET_PATH=database,
        MLFLOW_VAULT_AUTH_MODE="basic",
    )
    scheme, pair = headers_for(URL)["Authorization"].split()
    user, password = base64.b64decode(pair).decode().split(":")
    assert scheme == "Basic"
    assert user.upper().startswith("V_")
    assert password
    assert 80 <= cache_info().entries[0].expires_in <= 90


def test_a_lease_ends_with_the_login_that_it_was_made_with(bao, use_vault, database) -> None:
    rules = f'path "{database}" {{ capabilities = ["read"] }}'
    role = enable_approle(bao, "approle", rules, token_ttl="40s", token_max_ttl="40s")
    use_vault(VAULT_TOKEN=None, **role, MLFLOW_VAULT_SECRET_PATH=database, MLFLOW_VAULT_AUTH_MODE="basic")
    headers_for(URL)
    assert 25 <= cache_info().entries[0].expires_in <= 37
