"""The AWS provider against moto's server: the secret, failures, retries, endpoints, certificates, the agent."""

from __future__ import annotations

import base64
import json
import logging
import os
import subprocess
import sys
import threading
import time
import uuid

import pytest

from aws_fixtures import BEARER, URL, failure
from aws_servers import KEYS, Hanging, Proxy, TlsFront, json_of, refusal
from forks import child_gets
from loopback import Answer, Loopback
from mlflow_secrets_auth import cache_info, headers_for, refresh
from mlflow_secrets_auth.config import enabled_providers
from servers import free_port


def new_secret(moto, **content) -> str:
    name = f"mlflow/{uuid.uuid4().hex}"
    moto.boto().create_secret(Name=name, **content)
    return name


# The secret


def test_a_secret_by_name_is_read_with_one_request(aws, use, secret) -> None:
    use()
    assert headers_for(URL) == BEARER
    [call] = aws.calls
    assert call.action == "GetSecretValue"
    assert json_of(call.request) == {"SecretId": secret}
    assert "lib/mlflow-secrets-auth" in call.request.headers["user-agent"]
    assert enabled_providers() == ["aws-secrets-manager"]


def test_the_older_name_of_the_variable(use, secret) -> None:
    use(MLFLOW_AWS_SECRET_NAME=None, MLFLOW_AWS_SECRET_ID=secret)
    assert headers_for(URL) == BEARER


def test_both_names_of_the_variable_with_different_values(use) -> None:
    use(MLFLOW_AWS_SECRET_ID="another")
    error = failure()
    assert error.code == "config.conflict"
    assert "MLFLOW_AWS_SECRET_NAME and MLFLOW_AWS_SECRET_ID" in error.message


def test_a_full_arn_brings_its_own_region(aws, use, moto, caplog) -> None:
    caplog.set_level(logging.DEBUG, "mlflow_secrets_auth")
    name = f"mlflow/{uuid.uuid4().hex}"
    arn = moto.boto(region="eu-west-1").create_secret(Name=name, SecretString="abc")["ARN"]
    use(MLFLOW_AWS_SECRET_NAME=arn)
    assert headers_for(URL) == BEARER
    assert aws.last("GetSecretValue").region == "eu-west-1"
    [record] = [r for r in caplog.records if getattr(r, "event", "") == "arn_region"]
    assert record.levelname == "DEBUG"
    assert record.region == "eu-west-1"
    assert "us-east-1" in record.getMessage()


def test_a_full_arn_is_region_enough(aws, use, moto) -> None:
    arn = moto.boto(region="eu-west-1").create_secret(Name=uuid.uuid4().hex, SecretString="abc")["ARN"]
    use(MLFLOW_AWS_SECRET_NAME=arn, AWS_REGION=None)
    assert headers_for(URL) == BEARER


@pytest.mark.parametrize("form", ["stage", "id"])
def test_a_version_by_stage_or_by_id(aws, use, moto, form) -> None:
    name = new_secret(moto, SecretString="old")
    old = moto.boto().get_secret_value(SecretId=name)["VersionId"]
    moto.boto().put_secret_value(SecretId=name, SecretString="new")
    version = {"stage": "AWSPREVIOUS", "id": old}[form]
    use(MLFLOW_AWS_SECRET_NAME=name, MLFLOW_AWS_SECRET_VERSION=version)
    assert headers_for(URL) == {"Authorization": "Bearer old"}
    asked = json_of(aws.last("GetSecretValue").request)
    assert asked == {"SecretId": name, {"stage": "VersionStage", "id": "VersionId"}[form]: version}
    use(MLFLOW_AWS_SECRET_NAME=name, MLFLOW_AWS_SECRET_VERSION="AWSCURRENT")
    assert headers_for(URL) == {"Authorization": "Bearer new"}


@pytest.mark.parametrize("version", ["AWSPENDING", "11111111-2222-3333-4444-555555555555"])
def test_a_version_that_does_not_exist(aws, use, secret, version) -> None:
    words = f"Secrets Manager can't find the specified secret value for {version}"
    aws.once("GetSecretValue", refusal("ResourceNotFoundException", words))
    use(MLFLOW_AWS_SECRET_VERSION=version)
    error = failure()
    assert error.code == "aws.version_not_found"
    assert version in error.message and secret in error.message


def test_a_version_that_does_not_exist_as_moto_says_it(use) -> None:
    use(MLFLOW_AWS_SECRET_VERSION="11111111-2222-3333-4444-555555555555")
    assert failure().code == "aws.version_not_found"


@pytest.mark.parametrize(
    ("content", "mode", "header"),
    [
        ({"SecretString": "abc"}, "bearer", "Bearer abc"),
        ({"SecretBinary": b"abc"}, "bearer", "Bearer abc"),
        ({"SecretBinary": b'{"token": "abc"}'}, "bearer", "Bearer abc"),
        ({"SecretBinary": b"\xff\x00\xfe"}, "bearer", "Bearer /wD+"),
        ({"SecretString": '{"username": "u", "password": "p"}'}, "basic", "Basic dTpw"),
        ({"SecretString": "Custom abc"}, "raw", "Custom abc"),
    ],
)
def test_strings_and_bytes(use, moto, content, mode, header) -> None:
    use(MLFLOW_AWS_SECRET_NAME=new_secret(moto, **content), MLFLOW_AWS_AUTH_MODE=mode)
    assert headers_for(URL) == {"Authorization": header}


def test_a_secret_that_is_scheduled_for_deletion(use, moto, secret) -> None:
    moto.boto().delete_secret(SecretId=secret)
    use()
    error = failure()
    assert error.code == "aws.scheduled_for_deletion"
    assert secret in error.message and "restore-secret" in error.hint


def test_a_secret_that_does_not_exist_names_the_region(use) -> None:
    use(MLFLOW_AWS_SECRET_NAME="nowhere", AWS_REGION="ap-southeast-2")
    error = failure()
    assert error.code == "aws.not_found"
    assert "nowhere" in error.message and "ap-southeast-2" in error.message


def test_the_documented_ttl_holds(aws, use) -> None:
    use(MLFLOW_AWS_TTL_SEC="300")
    for _ in range(100):
        assert headers_for(URL) == BEARER
    assert aws.count("GetSecretValue") == 1
    [entry] = cache_info().entries[-1:]
    assert entry.provider == "aws-secrets-manager"


# Failures


@pytest.mark.parametrize(
    ("answer", "code", "words"),
    [
        (("AccessDeniedException", "User is not authorized"), "aws.access_denied", "secretsmanager:GetSecretValue"),
        (("AccessDeniedException", "Access to KMS is not allowed"), "aws.decryption_failed", "AccessDenied"),
        (("DecryptionFailure", "can't decrypt"), "aws.decryption_failed", "KMS key"),
        (("ThrottlingException", "Rate exceeded"), "aws.throttled", "fewer requests"),
        (("TooManyRequestsException", "", 429), "aws.throttled", "429"),
        (("ExpiredTokenException", "The security token is expired"), "aws.expired_token", "session token"),
        (("UnrecognizedClientException", "invalid"), "aws.credentials_refused", "AWS_ACCESS_KEY_ID"),
        (("InvalidSignatureException", "does not match"), "aws.credentials_refused", "AWS_ACCESS_KEY_ID"),
        (("InvalidSignatureException", "Signature expired: 1 is now earlier"), "aws.clock_skew", "clock"),
        (("RequestTimeTooSkewed", ""), "aws.clock_skew", "clock"),
        (("InternalServiceError", "", 500), "aws.unavailable", "500"),
        (("ValidationException", "canary-message"), "aws.unexpected_answer", "ValidationException"),
        (("<script>", "", 400), "aws.unexpected_answer", "HTTP 400"),
    ],
)
def test_every_refusal_has_its_code(aws, use, secret, answer, code, words) -> None:
    aws.once("GetSecretValue", refusal(*answer))
    use()
    error = failure()
    assert error.code == code
    assert words in error.message
    assert "us-east-1" in error.message
    assert aws.count("GetSecretValue") == 1


def test_access_denied_names_action_secret_and_identity(aws, use, secret) -> None:
    aws.once("GetSecretValue", refusal("AccessDeniedException", "no"))
    use()
    message = failure().message
    for words in ["secretsmanager:GetSecretValue", secret, "the keys in AWS_ACCESS_KEY_ID"]:
        assert words in message


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (Answer(200, {}, b"<html>canary</html>"), "aws.unexpected_answer"),
        (Answer(200, {}, b'{"SecretString": "canary' + b"x" * (2 << 20) + b'"}'), "aws.unexpected_answer"),
        (Answer(302, {"Location": "https://elsewhere.example.com"}, b""), "aws.unexpected_answer"),
        (Answer(502, {}, b"<html>canary</html>"), "aws.unavailable"),
        (Answer(408, {}, b""), "aws.unavailable"),
        (Answer(403, {}, b"<html>canary</html>"), "aws.unexpected_answer"),
        (Answer(200, {}, b"{}"), "secret.empty"),
    ],
)
def test_a_server_that_is_not_secrets_manager(aws, use, answer, code) -> None:
    aws.once("GetSecretValue", answer)
    use()
    assert failure().code == code
    assert aws.count("GetSecretValue") == 1


def test_nobody_listens(use) -> None:
    use(AWS_ENDPOINT_URL=f"http://127.0.0.1:{free_port()}")
    error = failure()
    assert error.code == "aws.unreachable"
    assert "connection refused" in error.message


def test_a_server_that_hangs_costs_no_more_than_the_deadline(use) -> None:
    with Hanging() as server:
        use(AWS_ENDPOINT_URL=server.url, MLFLOW_SECRETS_TIMEOUT_SEC="1", MLFLOW_AWS_MAX_RETRIES="5")
        started = time.monotonic()
        assert failure().code == "fetch.timeout"
        assert time.monotonic() - started < 2


# Settings


def test_all_missing_variables_are_named_together(configure) -> None:
    configure(MLFLOW_SECRETS_AUTH_ENABLE="aws-secrets-manager")
    error = failure()
    assert error.code == "config.missing"
    assert "AWS_REGION and MLFLOW_AWS_SECRET_NAME" in error.message


def test_a_profile_without_a_region(use, configure) -> None:
    folder = os.path.join(os.environ["HOME"], ".aws")
    os.mkdir(folder)
    with open(os.path.join(folder, "config"), "w") as file:
        file.write("[default]\noutput = json\n")
    use(AWS_REGION=None)
    assert failure().code == "aws.no_region"


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("AWS_MAX_ATTEMPTS", "0", "config.invalid_value"),
        ("AWS_MAX_ATTEMPTS", "many", "config.invalid_value"),
        ("AWS_RETRY_MODE", "turbo", "config.invalid_value"),
        ("MLFLOW_AWS_MAX_RETRIES", "11", "config.invalid_value"),
        ("MLFLOW_AWS_RETRY_MODE", "adaptiv", "config.invalid_value"),
        ("AWS_REGION", "us-east-1.evil.example", "config.invalid_value"),
        ("MLFLOW_AWS_SECRET_NAME", "arn:aws:secretsmanager:us-east-1", "config.invalid_value"),
        ("MLFLOW_AWS_SECRET_VERSION", "two words", "config.invalid_value"),
        ("AWS_ENDPOINT_URL_SECRETS_MANAGER", "localhost:4566", "config.invalid_value"),
        ("AWS_USE_FIPS_ENDPOINT", "maybe", "config.invalid_value"),
        ("AWS_ROLE_ARN", "mlflow-reader", "config.invalid_value"),
        ("AWS_SECRET_ACCESS_KEY", None, "config.missing"),
        ("AWS_CA_BUNDLE", "/nowhere.pem", "config.file"),
    ],
)
def test_garbage_is_our_error_not_a_panic(use, tmp_path, name, value, code) -> None:
    more = {"AWS_ENDPOINT_URL": "https://localhost:1"} if name == "AWS_CA_BUNDLE" else {}
    use(more, **{name: value})
    error = failure()
    assert error.code == code
    assert name in error.message


def test_secrets_never_show(aws, use, caplog) -> None:
    caplog.set_level(logging.DEBUG)
    use(AWS_SESSION_TOKEN="canary-session-token", AWS_EXTERNAL_ID="canary external id!")
    failure()
    use(AWS_SESSION_TOKEN="canary\nsession")
    failure()
    use(AWS_SESSION_TOKEN="canary-token", AWS_EXTERNAL_ID=None)
    aws.once("GetSecretValue", refusal("AccessDeniedException", "canary"))
    failure()
    use(AWS_SESSION_TOKEN="canary-session-token")
    headers_for(URL)
    assert aws.last("GetSecretValue").token == "canary-session-token"
    ours = [r for r in caplog.records if r.name.startswith("mlflow_secrets_auth")]
    assert ours
    assert not [r for r in ours if "canary" in str(vars(r))]


# Retries


@pytest.mark.parametrize(
    ("settings", "requests"),
    [
        ({"MLFLOW_AWS_MAX_RETRIES": "2"}, 3),
        ({"MLFLOW_AWS_MAX_RETRIES": "0", "MLFLOW_SECRETS_MAX_RETRIES": "5"}, 1),
        ({"MLFLOW_SECRETS_MAX_RETRIES": "1", "AWS_MAX_ATTEMPTS": "7"}, 2),
        ({"MLFLOW_SECRETS_MAX_RETRIES": None, "AWS_MAX_ATTEMPTS": "3"}, 3),
        ({"MLFLOW_SECRETS_MAX_RETRIES": None}, 4),
    ],
)
@pytest.mark.parametrize("answer", [refusal("InternalServiceError", status=500), refusal("ThrottlingException")])
def test_one_layer_retries_as_often_as_the_settings_say(aws, use, settings, requests, answer) -> None:
    aws.always("GetSecretValue", answer)
    use(settings)
    assert failure().code in {"aws.unavailable", "aws.throttled"}
    assert aws.count("GetSecretValue") == requests


def test_a_failure_that_passes_is_not_seen(aws, use) -> None:
    aws.once("GetSecretValue", refusal("InternalServiceError", status=500), refusal("ThrottlingException"))
    use(MLFLOW_AWS_MAX_RETRIES="2")
    assert headers_for(URL) == BEARER
    assert aws.count("GetSecretValue") == 3


def test_a_final_refusal_is_not_tried_again(aws, use) -> None:
    aws.always("GetSecretValue", refusal("AccessDeniedException"))
    use(MLFLOW_AWS_MAX_RETRIES="5")
    assert failure().code == "aws.access_denied"
    assert aws.count("GetSecretValue") == 1


def test_the_time_that_aws_names_is_waited(aws, use) -> None:
    aws.once("GetSecretValue", refusal("ThrottlingException", status=429, Retry_After="1"))
    use(MLFLOW_AWS_MAX_RETRIES="1")
    started = time.monotonic()
    assert headers_for(URL) == BEARER
    assert time.monotonic() - started >= 1


def test_the_adaptive_mode_slows_down_after_throttling(aws, use) -> None:
    aws.once("GetSecretValue", refusal("ThrottlingException"))
    # A region of its own, because the SDK's rate limiter is one per region and process.
    use(MLFLOW_AWS_MAX_RETRIES="1", MLFLOW_AWS_RETRY_MODE="adaptive", AWS_REGION="eu-north-1")
    aws.always("GetSecretValue", Answer.json({"SecretString": "abc", "Name": "n"}))
    started = time.monotonic()
    assert headers_for(URL) == BEARER
    assert 0.2 < time.monotonic() - started < 5
    assert aws.count("GetSecretValue") == 2


def test_the_legacy_mode_is_standard_and_says_so(use, caplog) -> None:
    use(MLFLOW_AWS_RETRY_MODE="legacy")
    assert headers_for(URL) == BEARER
    assert [r for r in caplog.records if "MLFLOW_AWS_RETRY_MODE=legacy is treated as standard" in r.getMessage()]


def test_a_wrong_clock_is_corrected_and_the_request_repeated(aws, use) -> None:
    aws.once(
        "GetSecretValue",
        refusal("InvalidSignatureException", "Signature expired", Date="Sat, 01 Jan 2050 00:00:00 GMT"),
    )
    use(MLFLOW_AWS_MAX_RETRIES="1")
    assert headers_for(URL) == BEARER
    assert [call.request.headers["x-amz-date"][:4] == "2050" for call in aws.calls] == [False, True]


def test_with_a_stale_credential_one_attempt_is_made(aws, use, caplog) -> None:
    use(MLFLOW_AWS_TTL_SEC="0.3", MLFLOW_AWS_MAX_RETRIES="5")
    assert headers_for(URL) == BEARER
    aws.always("GetSecretValue", refusal("InternalServiceError", status=500))
    time.sleep(0.35)
    assert headers_for(URL) == BEARER
    assert aws.count("GetSecretValue") == 2


def test_with_a_stale_credential_a_hang_costs_two_seconds(aws, use) -> None:
    use(MLFLOW_AWS_TTL_SEC="0.3", MLFLOW_AWS_MAX_RETRIES="5")
    assert headers_for(URL) == BEARER
    aws.always("GetSecretValue", Answer(before=lambda: time.sleep(4)))
    time.sleep(0.35)
    started = time.monotonic()
    assert headers_for(URL) == BEARER
    assert 1.5 < time.monotonic() - started < 3


# Endpoints, proxies, certificates


def test_the_endpoint_of_the_service_wins(aws, use) -> None:
    use(AWS_ENDPOINT_URL="http://127.0.0.1:1", AWS_ENDPOINT_URL_SECRETS_MANAGER=aws.url)
    assert headers_for(URL) == BEARER


@pytest.mark.parametrize(
    ("settings", "host"),
    [
        ({}, "secretsmanager.us-east-1.amazonaws.com"),
        ({"AWS_REGION": "cn-north-1"}, "secretsmanager.cn-north-1.amazonaws.com.cn"),
        ({"AWS_USE_FIPS_ENDPOINT": "true"}, "secretsmanager-fips.us-east-1.amazonaws.com"),
        # In most regions the usual host is dual-stack by now.
        (
            {"AWS_REGION": "cn-north-1", "AWS_USE_FIPS_ENDPOINT": "1", "AWS_USE_DUALSTACK_ENDPOINT": "yes"},
            "secretsmanager-fips.cn-north-1.api.amazonwebservices.com.cn",
        ),
        (
            {"AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true"},
            "secretsmanager.us-east-1.amazonaws.com",
        ),
    ],
)
def test_awss_own_endpoints_through_a_proxy(use, settings, host) -> None:
    with Proxy() as proxy:
        use({"AWS_ENDPOINT_URL": None, "HTTPS_PROXY": proxy.url, "MLFLOW_SECRETS_TIMEOUT_SEC": "5", **settings})
        assert failure().code == "aws.unreachable"
        assert proxy.hosts == [f"{host}:443"]


def test_no_proxy_for_this_machine(use) -> None:
    with Proxy() as proxy:
        use(HTTP_PROXY=proxy.url, http_proxy=proxy.url)
        assert headers_for(URL) == BEARER
        assert proxy.heard == []


@pytest.fixture
def tls(moto, tmp_path):
    with TlsFront(moto, tmp_path) as front:
        yield front


@pytest.mark.parametrize("variable", ["AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"])
def test_a_ca_of_ones_own(tls, use, variable) -> None:
    none = dict.fromkeys(["REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"])
    use(none, AWS_ENDPOINT_URL=tls.url)
    error = failure()
    assert error.code == "aws.tls"
    assert "AWS_CA_BUNDLE" in error.hint
    use(none, AWS_ENDPOINT_URL=tls.url, **{variable: str(tls.ca)})
    assert headers_for(URL) == BEARER


def test_the_bundle_for_aws_wins(tls, use, tmp_path) -> None:
    use(AWS_ENDPOINT_URL=tls.url, AWS_CA_BUNDLE=str(tls.ca), REQUESTS_CA_BUNDLE="/nowhere.pem")
    assert headers_for(URL) == BEARER


# The agent


@pytest.fixture
def agent():
    """The Secrets Manager Agent: answers with ``{"SecretString": "abc"}`` to whoever shows the token."""

    def answer(request):
        if request.headers.get("x-aws-parameters-secrets-token") != "canary-agent-token":
            return Answer(403, {}, b"Bad Token")
        return Answer.json({"Name": "n", "SecretString": "abc", "VersionId": "v"})

    with Loopback(answer) as server:
        yield server


@pytest.fixture
def use_agent(agent, configure):
    def apply(**more) -> None:
        configure(
            MLFLOW_SECRETS_AUTH_ENABLE="aws-secrets-manager",
            MLFLOW_AWS_SECRET_NAME="mlflow/auth",
            MLFLOW_AWS_AGENT_URL=agent.url,
            MLFLOW_AWS_AGENT_TOKEN="canary-agent-token",
            MLFLOW_AWS_TTL_SEC="0",
            MLFLOW_SECRETS_MAX_RETRIES="0",
        )
        configure(**more)

    return apply


@pytest.mark.parametrize(
    ("version", "query"),
    [
        (None, ""),
        ("AWSPREVIOUS", "&versionStage=AWSPREVIOUS"),
        ("11111111-2222-3333-4444-555555555555", "&versionId=11111111-2222-3333-4444-555555555555"),
    ],
)
def test_the_agent_reads_the_secret(agent, use_agent, version, query) -> None:
    use_agent(MLFLOW_AWS_SECRET_VERSION=version)
    assert headers_for(URL) == BEARER
    [request] = agent.requests
    assert request.path == f"/secretsmanager/get?secretId=mlflow%2Fauth{query}"


@pytest.mark.parametrize("knows", [True, False])
def test_a_refresh_passes_the_agents_cache(agent, use_agent, knows) -> None:
    plain = agent.rule

    def answer(request):
        if "refreshNow=true" in request.path and not knows:
            return Answer(400, {}, b"unknown parameter: refreshNow")
        return plain(request)

    agent.rule = answer
    use_agent(MLFLOW_AWS_TTL_SEC="300")
    assert headers_for(URL) == BEARER
    refresh()
    asked = [request.path.partition("secretId=mlflow%2Fauth")[2] for request in agent.requests]
    assert asked == ["", "&refreshNow=true"] + ([] if knows else [""])


def test_the_agents_token_from_a_file_is_read_again(agent, use_agent, tmp_path) -> None:
    file = tmp_path / "token"
    use_agent(MLFLOW_AWS_AGENT_TOKEN=f"file://{file}")
    assert failure().code == "aws.agent_token"
    file.write_text("canary-agent-token\n")
    time.sleep(1)  # the fail-fast window after the failure
    assert headers_for(URL) == BEARER


def test_the_agent_gives_bytes(agent, use_agent) -> None:
    agent.rule = lambda request: Answer.json({"SecretBinary": base64.b64encode(b"abc").decode()})
    use_agent()
    assert headers_for(URL) == BEARER


def test_the_agent_does_not_accept_the_token(use_agent) -> None:
    use_agent(MLFLOW_AWS_AGENT_TOKEN="canary-wrong")
    assert failure().code == "aws.agent_token"


def test_the_agent_is_not_running(use_agent) -> None:
    use_agent(MLFLOW_AWS_AGENT_URL=f"http://127.0.0.1:{free_port()}")
    error = failure()
    assert error.code == "aws.agent_unreachable"
    assert "connection refused" in error.message


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (refusal("ResourceNotFoundException", "can't find the specified secret."), "aws.not_found"),
        (refusal("AccessDeniedException", "User is not authorized"), "aws.access_denied"),
        (Answer(429, {}, b"Connection limit exceeded"), "aws.throttled"),
        (Answer(500, {}, b"canary"), "aws.unavailable"),
        (Answer(200, {}, b"canary"), "aws.unexpected_answer"),
        (Answer(200, {}, json.dumps({"SecretString": "x" * (2 << 20)}).encode()), "aws.unexpected_answer"),
    ],
)
def test_what_the_agent_refuses(agent, use_agent, answer, code) -> None:
    agent.rule = lambda request: answer
    use_agent()
    assert failure().code == code


@pytest.mark.parametrize("missing", ["MLFLOW_AWS_AGENT_URL", "MLFLOW_AWS_AGENT_TOKEN"])
def test_the_agent_needs_both_variables(use_agent, missing) -> None:
    use_agent(**{missing: None}, **KEYS, AWS_REGION="us-east-1")
    error = failure()
    assert error.code == "config.missing"
    assert missing in error.message


# The process


def test_a_fork_in_the_middle_of_reads(aws, use) -> None:
    use()
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            headers_for(URL)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        assert all(child_gets(URL, BEARER) for _ in range(10))
    finally:
        done.set()
        thread.join()


def test_aws_takes_over_from_a_vault_that_is_down(use, caplog) -> None:
    use(
        MLFLOW_SECRETS_AUTH_ENABLE="vault,aws-secrets-manager",
        VAULT_ADDR=f"http://127.0.0.1:{free_port()}",
        VAULT_TOKEN="t",
        MLFLOW_VAULT_SECRET_PATH="secret/mlflow/auth",
    )
    assert headers_for(URL) == BEARER
    [record] = [r for r in caplog.records if getattr(r, "event", "") == "switched"]
    assert record.levelname == "WARNING" and record.provider == "aws-secrets-manager"


@pytest.mark.parametrize("command", ["info", "doctor"])
def test_the_commands_show_no_secret(use, command) -> None:
    use(AWS_SESSION_TOKEN="canary-token", AWS_EXTERNAL_ID="canary-id", MLFLOW_TRACKING_AUTH="mlflow_secrets_auth")
    run = [sys.executable, "-m", "mlflow_secrets_auth", command, "--json"]
    result = subprocess.run(run, capture_output=True, text=True, check=False)
    assert "canary" not in result.stdout + result.stderr
    assert "abc" not in result.stdout
    assert result.returncode == 0, result.stdout + result.stderr
    assert "aws-secrets-manager" in result.stdout
