"""Who the AWS provider is to AWS: every source of credentials, and the roles on top, with STS calls counted."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import boto3
import pytest

from aws_fixtures import BEARER, NO_KEYS, URL, failure
from aws_servers import (
    ACCOUNT,
    ROLE,
    Hanging,
    Proxy,
    caller_identity,
    endpoint_credentials,
    in_seconds,
    metadata_service,
    refusal,
    sts_credentials,
    sts_refusal,
)
from loopback import Answer, Loopback
from mlflow_secrets_auth import headers_for

WEB = "AssumeRoleWithWebIdentity"
OUR_ROLE = f"arn:aws:iam::{ACCOUNT}:role/mlflow-secret"


def write(name: str, text: str) -> Path:
    """A file below ``~/.aws``."""
    path = Path(os.environ["HOME"], ".aws", name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def fetch(times: int = 1) -> None:
    for _ in range(times):
        assert headers_for(URL) == BEARER


def reader(aws) -> str:
    """Whose key signed the last read of the secret."""
    return aws.last("GetSecretValue").key


# Sources


def test_static_keys(aws, use) -> None:
    use()
    fetch()
    assert reader(aws) == "AKIATESTKEY"
    assert aws.last("GetSecretValue").token is None


def test_a_session_token_goes_along(aws, use) -> None:
    use(AWS_SESSION_TOKEN="canary-token")
    fetch()
    assert aws.last("GetSecretValue").token == "canary-token"


def test_the_default_profile_with_its_region(aws, use) -> None:
    write("credentials", "[default]\naws_access_key_id = AKIADEFAULT\naws_secret_access_key = s\n")
    write("config", "[default]\nregion = us-east-1\n")
    use(AWS_REGION=None, **NO_KEYS)
    fetch()
    assert reader(aws) == "AKIADEFAULT"
    assert aws.last("GetSecretValue").region == "us-east-1"


def test_keys_that_are_replaced_in_the_file_are_noticed(aws, use) -> None:
    use(**NO_KEYS)
    for key in ["AKIAONE", "AKIATWO"]:
        write("credentials", f"[default]\naws_access_key_id = {key}\naws_secret_access_key = s\n")
        fetch()
        assert reader(aws) == key


def test_an_explicit_profile_wins_over_stray_keys(aws, use, caplog) -> None:
    write("credentials", "[team]\naws_access_key_id = AKIATEAM\naws_secret_access_key = s\n")
    use(AWS_PROFILE="team", AWS_WEB_IDENTITY_TOKEN_FILE="/nowhere")
    fetch()
    assert reader(aws) == "AKIATEAM" == boto3.Session(profile_name="team").get_credentials().access_key
    assert [r for r in caplog.records if "AWS_PROFILE=team wins over AWS_ACCESS_KEY_ID" in r.getMessage()]


def test_files_in_other_places(aws, use, tmp_path) -> None:
    (tmp_path / "c").write_text("[profile team]\nregion = us-east-1\n")
    (tmp_path / "k").write_text("[team]\naws_access_key_id = AKIATEAM\naws_secret_access_key = s\n")
    use(
        AWS_PROFILE="team",
        AWS_REGION=None,
        AWS_CONFIG_FILE=str(tmp_path / "c"),
        AWS_SHARED_CREDENTIALS_FILE=str(tmp_path / "k"),
    )
    fetch()
    assert reader(aws) == "AKIATEAM"


def test_a_profile_with_a_role_and_a_source_profile(aws, use) -> None:
    write("credentials", "[base]\naws_access_key_id = AKIABASE\naws_secret_access_key = s\n")
    write("config", f"[profile team]\nrole_arn = {ROLE}\nsource_profile = base\n")
    use(AWS_PROFILE="team")
    fetch(3)
    assert aws.count("AssumeRole") == 1
    assert aws.last("AssumeRole").key == "AKIABASE"
    assert reader(aws).startswith("ASIA")


def test_a_profile_that_does_not_exist(use) -> None:
    write("credentials", "[team]\naws_access_key_id = a\naws_secret_access_key = s\n")
    use(AWS_PROFILE="taem")
    error = failure()
    assert error.code == "aws.profile"
    assert "taem" in error.message and "team" in error.message


@pytest.mark.parametrize(
    "text",
    [
        "[profile team\n",
        f"[profile team]\nrole_arn = {ROLE}\n",
        f"[profile team]\nrole_arn = {ROLE}\nsource_profile = nobody\n",
        "[profile team]\naws_access_key_id = a\n",
    ],
)
def test_a_profile_that_is_not_usable(use, text) -> None:
    write("config", text)
    use(AWS_PROFILE="team")
    assert failure().code == "aws.profile"


@pytest.mark.parametrize(
    "text",
    [
        "[profile team]\ncredential_process = /bin/echo canary\n",
        f"[profile team]\nrole_arn = {ROLE}\nsource_profile = base\n"
        "[profile base]\ncredential_process = /bin/echo canary\n",
    ],
)
def test_credential_process_is_refused_with_its_own_code(use, text) -> None:
    write("config", text)
    use(AWS_PROFILE="team")
    error = failure()
    assert error.code == "aws.credential_process"
    assert "team" in error.message


@pytest.fixture
def sso():
    """IAM Identity Center's portal."""

    def answer(request):
        if request.headers.get("x-amz-sso_bearer_token") != "sso-token":
            return Answer.json({"message": "canary"}, 401)
        credentials = {
            "accessKeyId": "ASIASSO",
            "secretAccessKey": "s",
            "sessionToken": "t",
            "expiration": int((time.time() + 3600) * 1000),
        }
        return Answer.json({"roleCredentials": credentials})

    with Loopback(answer) as server:
        yield server


@pytest.mark.parametrize("form", ["session", "legacy"])
def test_sso(aws, use, sso, form) -> None:
    start = "https://team.awsapps.com/start"
    where = f"sso_region = us-east-1\nsso_start_url = {start}\n"
    role = f"sso_account_id = {ACCOUNT}\nsso_role_name = reader\n"
    if form == "session":
        write("config", f"[profile team]\nsso_session = s\n{role}\n[sso-session s]\n{where}")
    else:
        write("config", f"[profile team]\n{where}{role}")
    use(AWS_PROFILE="team", AWS_ENDPOINT_URL_SSO=sso.url)
    error = failure()
    assert error.code in {"aws.profile", "aws.identity_refused"}
    assert "aws sso login --profile team" in error.hint
    token = {"startUrl": start, "region": "us-east-1", "accessToken": "sso-token", "expiresAt": in_seconds(3600)}
    name = hashlib.sha1((start if form == "legacy" else "s").encode()).hexdigest()
    write(f"sso/cache/{name}.json", json.dumps(token))
    time.sleep(1)  # the fail-fast window after the failure
    fetch(3)
    assert reader(aws) == "ASIASSO"
    assert len(sso.requests) == 1
    sso.rule = lambda request: Answer.json({"message": "canary"}, 401)
    use(AWS_PROFILE="team", AWS_ENDPOINT_URL_SSO=sso.url, AWS_ROLE_SESSION_NAME="another")
    error = failure()
    assert error.code == "aws.identity_refused"
    assert "HTTP 401" in error.message and "aws sso login --profile team" in error.hint


def web_identity(tmp_path: Path, **more: str) -> dict[str, str | None]:
    (tmp_path / "jwt").write_text("canary-jwt-1")
    return {
        **NO_KEYS,
        "AWS_WEB_IDENTITY_TOKEN_FILE": str(tmp_path / "jwt"),
        "AWS_ROLE_ARN": ROLE,
        "AWS_ROLE_SESSION_NAME": "ci",
        **more,
    }


def test_web_identity_belongs_to_aws_role_arn_once(aws, use, tmp_path) -> None:
    use(web_identity(tmp_path))
    fetch(3)
    assert aws.count(WEB) == 1 and aws.count("AssumeRole") == 0
    form = aws.last(WEB).form
    assert (form["RoleArn"], form["RoleSessionName"]) == (ROLE, "ci")
    assert form["WebIdentityToken"] == "canary-jwt-1"
    assert reader(aws).startswith("ASIA")


def test_web_identity_reads_its_file_again(aws, use, tmp_path) -> None:
    aws.once(WEB, sts_credentials(WEB, "ASIAONE", 1), sts_credentials(WEB, "ASIATWO", 3600))
    use(web_identity(tmp_path))
    fetch()
    assert reader(aws) == "ASIAONE"
    (tmp_path / "jwt").write_text("canary-jwt-2")
    time.sleep(1)
    fetch()
    assert reader(aws) == "ASIATWO"
    tokens = [call.form["WebIdentityToken"] for call in aws.calls if call.action == WEB]
    assert tokens == ["canary-jwt-1", "canary-jwt-2"]


def test_web_identity_that_sts_does_not_accept(aws, use, tmp_path) -> None:
    aws.always(WEB, sts_refusal("InvalidIdentityToken", 400))
    use(web_identity(tmp_path), MLFLOW_AWS_MAX_RETRIES="3")
    error = failure()
    assert error.code == "aws.identity_refused"
    assert "InvalidIdentityToken" in error.message
    assert aws.count(WEB) == 1


def test_web_identity_without_its_file(use, tmp_path) -> None:
    use(web_identity(tmp_path))
    (tmp_path / "jwt").unlink()
    error = failure()
    assert error.code == "aws.identity_refused"
    assert "no such file" in error.message


def test_web_identity_without_a_role(use, tmp_path) -> None:
    use(web_identity(tmp_path), AWS_ROLE_ARN=None)
    error = failure()
    assert error.code == "config.missing"
    assert "AWS_ROLE_ARN" in error.message


@pytest.mark.parametrize("answer", [sts_refusal("Throttling", 400), sts_refusal("ServiceUnavailable", 503)])
def test_sts_that_is_down_is_tried_again(aws, use, tmp_path, answer) -> None:
    aws.once(WEB, answer, answer)
    use(web_identity(tmp_path), MLFLOW_AWS_MAX_RETRIES="2")
    fetch()
    assert aws.count(WEB) == 3
    aws.always(WEB, answer)
    use(web_identity(tmp_path), MLFLOW_AWS_MAX_RETRIES="1", AWS_ROLE_SESSION_NAME="another")
    assert failure().code == "aws.identity_unreachable"
    assert aws.count(WEB) == 5


@pytest.fixture
def endpoint():
    """A container's endpoint, of ECS or EKS."""

    def answer(request):
        if request.headers.get("authorization") != "canary-pod-token":
            return Answer(401, {}, b"canary")
        return Answer.json(endpoint_credentials("ASIACONTAINER"))

    with Loopback(answer) as server:
        yield server


@pytest.mark.parametrize("form", ["value", "file"])
def test_a_containers_endpoint(aws, use, endpoint, tmp_path, form) -> None:
    (tmp_path / "token").write_text("canary-pod-token")
    token = {
        "value": {"AWS_CONTAINER_AUTHORIZATION_TOKEN": "canary-pod-token"},
        "file": {"AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": str(tmp_path / "token")},
    }[form]
    use(token, AWS_CONTAINER_CREDENTIALS_FULL_URI=f"{endpoint.url}/v1/credentials", **NO_KEYS)
    fetch(3)
    assert reader(aws) == "ASIACONTAINER"
    assert [request.path for request in endpoint.requests] == ["/v1/credentials"]


def test_a_web_identity_comes_before_a_containers_endpoint(aws, use, endpoint, tmp_path) -> None:
    use(web_identity(tmp_path), AWS_CONTAINER_CREDENTIALS_FULL_URI=endpoint.url)
    fetch()
    assert aws.count(WEB) == 1
    assert endpoint.requests == []


def test_a_containers_endpoint_that_refuses(use, endpoint) -> None:
    use(AWS_CONTAINER_CREDENTIALS_FULL_URI=endpoint.url, MLFLOW_AWS_MAX_RETRIES="3", **NO_KEYS)
    error = failure()
    assert error.code == "aws.identity_refused"
    assert endpoint.url in error.message and "HTTP 401" in error.message
    assert len(endpoint.requests) == 1


def test_a_containers_endpoint_that_fails_is_asked_once_per_attempt(use, endpoint) -> None:
    endpoint.rule = lambda request: Answer(500)
    use(AWS_CONTAINER_CREDENTIALS_FULL_URI=endpoint.url, MLFLOW_AWS_MAX_RETRIES="2", **NO_KEYS)
    assert failure().code == "aws.identity_unreachable"
    assert len(endpoint.requests) == 3


def test_a_containers_endpoint_elsewhere_over_plain_http_is_refused(use) -> None:
    use(AWS_CONTAINER_CREDENTIALS_FULL_URI="http://192.0.2.1/credentials", **NO_KEYS)
    assert failure().code == "aws.identity_refused"


def test_ec2_metadata_never_through_a_proxy(aws, use) -> None:
    with Loopback(metadata_service) as metadata, Proxy() as proxy:
        use(
            AWS_EC2_METADATA_DISABLED=None,
            AWS_EC2_METADATA_SERVICE_ENDPOINT=metadata.url,
            HTTP_PROXY=proxy.url,
            http_proxy=proxy.url,
            **NO_KEYS,
        )
        fetch(3)
        assert reader(aws) == "ASIAMETADATA"
        assert len(metadata.requests) == 3
        assert proxy.heard == []


def test_a_machine_without_a_role(use) -> None:
    def bare(request):
        return metadata_service(request) if request.method == "PUT" else Answer(404)

    with Loopback(bare) as metadata:
        use(AWS_EC2_METADATA_DISABLED=None, AWS_EC2_METADATA_SERVICE_ENDPOINT=metadata.url, **NO_KEYS)
        error = failure()
        assert error.code == "aws.no_credentials"
        assert "no role attached (HTTP 404)" in error.message


@pytest.mark.parametrize(
    ("answer", "code", "times"),
    [
        (Answer.json({"Code": "AssumeRoleUnauthorizedAccess", "Message": "canary"}), "aws.identity_refused", 1),
        (Answer(500), "aws.identity_unreachable", 2),
    ],
)
def test_a_metadata_service_that_has_a_role_and_does_not_give_it(use, answer, code, times) -> None:
    def failing(request):
        return answer if request.path.endswith("/instance-role") else metadata_service(request)

    with Loopback(failing) as metadata:
        use(
            AWS_EC2_METADATA_DISABLED=None,
            AWS_EC2_METADATA_SERVICE_ENDPOINT=metadata.url,
            MLFLOW_AWS_MAX_RETRIES="1",
            **NO_KEYS,
        )
        assert failure().code == code
        assert sum(request.path.endswith("/instance-role") for request in metadata.requests) == times


def test_off_aws_the_error_comes_soon_and_lists_every_source(use) -> None:
    with Hanging() as metadata:
        use(
            AWS_EC2_METADATA_DISABLED=None,
            AWS_EC2_METADATA_SERVICE_ENDPOINT=metadata.url,
            MLFLOW_SECRETS_MAX_RETRIES=None,
            **NO_KEYS,
        )
        started = time.monotonic()
        error = failure()
        assert time.monotonic() - started < 3
        assert error.code == "aws.no_credentials"
        assert len(metadata.heard) == 1
        lines = [line.strip() for line in error.message.splitlines()[1:]]
        sources = ["environment", "profile default", "web identity", "container endpoint", "EC2 metadata"]
        assert [line.startswith(source) for line, source in zip(lines, sources, strict=True)] == [True] * 5
        assert all(line.endswith(" ms)") for line in lines)
        assert "timed out" in lines[4]


def test_a_metadata_service_that_goes_away_later_is_an_outage(aws, use) -> None:
    with Loopback(lambda request: short_lived(request)) as metadata:
        use(
            AWS_EC2_METADATA_DISABLED=None,
            AWS_EC2_METADATA_SERVICE_ENDPOINT=metadata.url,
            MLFLOW_AWS_TTL_SEC="0.5",
            **NO_KEYS,
        )
        fetch()
        metadata.rule = lambda request: Answer(404)
        time.sleep(1.1)
        fetch()
    assert aws.count("GetSecretValue") == 1


def short_lived(request) -> Answer:
    answer = metadata_service(request)
    if b"AccessKeyId" in answer.body:
        return Answer.json(endpoint_credentials("ASIASHORT", 1))
    return answer


# Roles


def test_a_role_on_top_is_assumed_once(aws, use) -> None:
    use(AWS_ROLE_ARN=ROLE, AWS_ROLE_SESSION_NAME="ci", AWS_EXTERNAL_ID="ext-1")
    fetch(5)
    assert aws.count("AssumeRole") == 1
    call = aws.last("AssumeRole")
    assert call.key == "AKIATESTKEY"
    assert (call.form["RoleArn"], call.form["RoleSessionName"], call.form["ExternalId"]) == (ROLE, "ci", "ext-1")
    assert reader(aws).startswith("ASIA")
    assert aws.last("GetSecretValue").token


def test_doctor_tells_the_whole_way_to_a_role(aws, use, secret) -> None:
    use(AWS_ROLE_ARN=ROLE, AWS_SESSION_TOKEN="canary-token")
    run = [sys.executable, "-m", "mlflow_secrets_auth", "doctor", "--json"]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert "canary" not in done.stdout
    findings = {finding["code"]: finding for finding in json.loads(done.stdout)["findings"]}
    tried = findings["identity.found"]["facts"]["tried"]
    assert [(one["way"], one["succeeded"]) for one in tried] == [("environment", True), ("role in AWS_ROLE_ARN", True)]
    assert findings["identity.found"]["message"].startswith("aws-secrets-manager: the keys in AWS_ACCESS_KEY_ID as the")
    assert findings["backend.reachable"]["facts"]["server"] == aws.url
    facts = findings["secret.readable"]["facts"]
    assert facts["location"] == f"{secret} (Secrets Manager in us-east-1)"
    assert facts["fields"] == ["token"] and 0 <= facts["age_s"] < 600


def test_the_session_has_a_name_by_default(aws, use) -> None:
    use(AWS_ROLE_ARN=ROLE)
    fetch()
    assert aws.last("AssumeRole").form["RoleSessionName"] == "mlflow-secrets-auth"


def test_our_role_on_top_of_a_web_identity(aws, use, tmp_path) -> None:
    use(web_identity(tmp_path), MLFLOW_AWS_ROLE_ARN=OUR_ROLE)
    fetch(3)
    assert aws.count(WEB) == 1 and aws.count("AssumeRole") == 1
    assert aws.last("AssumeRole").form["RoleArn"] == OUR_ROLE


def test_our_role_on_top_of_aws_role_arn(aws, use) -> None:
    use(AWS_ROLE_ARN=ROLE, MLFLOW_AWS_ROLE_ARN=OUR_ROLE)
    fetch(3)
    assert [call.form["RoleArn"] for call in aws.calls if call.action == "AssumeRole"] == [ROLE, OUR_ROLE]
    assert [call.key[:4] for call in aws.calls if call.action == "AssumeRole"] == ["AKIA", "ASIA"]


def test_the_endpoint_of_sts_wins(aws, use) -> None:
    use(
        AWS_ENDPOINT_URL="http://127.0.0.1:1",
        AWS_ENDPOINT_URL_STS=aws.url,
        AWS_ENDPOINT_URL_SECRETS_MANAGER=aws.url,
        AWS_ROLE_ARN=ROLE,
    )
    fetch()
    assert aws.count("AssumeRole") == 1


def test_a_caller_that_already_is_the_role_goes_on_and_says_so_once(aws, use, caplog) -> None:
    caplog.set_level(logging.INFO, "mlflow_secrets_auth")
    aws.always("AssumeRole", sts_refusal("AccessDenied"))
    aws.always("GetCallerIdentity", caller_identity(f"arn:aws:sts::{ACCOUNT}:assumed-role/mlflow-reader/task"))
    use(AWS_ROLE_ARN=ROLE, AWS_SESSION_TOKEN="t")
    fetch(4)
    assert reader(aws) == "AKIATESTKEY"
    assert (aws.count("AssumeRole"), aws.count("GetCallerIdentity")) == (1, 1)
    assert len([r for r in caplog.records if getattr(r, "event", "") == "already_role"]) == 1


@pytest.mark.parametrize(
    "arn",
    [
        f"arn:aws:sts::{ACCOUNT}:assumed-role/another/task",
        "arn:aws:sts::999999999999:assumed-role/mlflow-reader/task",
        f"arn:aws:iam::{ACCOUNT}:user/mlflow-reader",
    ],
)
def test_a_role_that_is_refused(aws, use, arn) -> None:
    aws.always("AssumeRole", sts_refusal("AccessDenied"))
    aws.always("GetCallerIdentity", caller_identity(arn))
    use(AWS_ROLE_ARN=ROLE, MLFLOW_AWS_MAX_RETRIES="3")
    error = failure()
    assert error.code == "aws.role_refused"
    assert ROLE in error.message and "sts:AssumeRole" in error.hint
    assert aws.count("AssumeRole") == 1 and aws.count("GetSecretValue") == 0


def test_an_sts_that_hangs_costs_no_more_than_the_deadline(use) -> None:
    with Hanging() as sts:
        use(
            AWS_ROLE_ARN=ROLE,
            AWS_ENDPOINT_URL_STS=sts.url,
            MLFLOW_SECRETS_TIMEOUT_SEC="1",
            MLFLOW_AWS_MAX_RETRIES="5",
        )
        started = time.monotonic()
        assert failure().code == "fetch.timeout"
        assert time.monotonic() - started < 2


def test_a_wrong_clock_at_sts_is_corrected(aws, use) -> None:
    answer = sts_refusal("SignatureDoesNotMatch", 403, "Signature expired: 1", Date="Sat, 01 Jan 2050 00:00:00 GMT")
    aws.once("AssumeRole", answer)
    use(AWS_ROLE_ARN=ROLE, MLFLOW_AWS_MAX_RETRIES="1")
    fetch()
    dates = [call.request.headers["x-amz-date"][:4] for call in aws.calls if call.action == "AssumeRole"]
    assert [date == "2050" for date in dates] == [False, True]


@pytest.mark.parametrize(
    ("refused", "code"),
    [("ExpiredToken", "aws.expired_token"), ("InvalidClientTokenId", "aws.credentials_refused")],
)
def test_keys_that_sts_does_not_accept(aws, use, refused, code) -> None:
    aws.always("AssumeRole", sts_refusal(refused))
    use(AWS_ROLE_ARN=ROLE)
    error = failure()
    assert error.code == code
    assert "the keys in AWS_ACCESS_KEY_ID" in error.message


def test_temporary_credentials_are_renewed_before_they_end(aws, use) -> None:
    aws.once("AssumeRole", sts_credentials("AssumeRole", "ASIAONE", 1), sts_credentials("AssumeRole", "ASIATWO"))
    use(AWS_ROLE_ARN=ROLE)
    fetch()
    assert reader(aws) == "ASIAONE"
    time.sleep(1)
    fetch(2)
    assert reader(aws) == "ASIATWO"
    assert aws.count("AssumeRole") == 2


def test_temporary_credentials_that_were_revoked_are_replaced_within_the_fetch(aws, use) -> None:
    use(AWS_ROLE_ARN=ROLE)
    fetch()
    aws.once("GetSecretValue", refusal("ExpiredTokenException", "expired"))
    fetch()
    assert aws.count("AssumeRole") == 2
    assert aws.count("GetSecretValue") == 3


def test_credentials_at_hand_outlast_a_failing_sts(aws, use) -> None:
    aws.once("AssumeRole", sts_credentials("AssumeRole", "ASIAONE", 3))
    use(AWS_ROLE_ARN=ROLE)
    fetch()
    aws.always("AssumeRole", sts_refusal("ServiceUnavailable", 503))
    deadline = time.monotonic() + 3
    while aws.count("AssumeRole") < 2:  # at nine tenths of their life
        assert time.monotonic() < deadline
        time.sleep(0.05)
        fetch()
    assert reader(aws) == "ASIAONE"
