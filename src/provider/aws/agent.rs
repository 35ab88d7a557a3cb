//! The secret through the node's AWS Secrets Manager Agent, which has an identity and a cache of its own.
//!
//! <https://docs.aws.amazon.com/secretsmanager/latest/userguide/secrets-manager-agent.html>

use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::Value;
use url::Url;
use zeroize::Zeroizing;

use super::client::unreachable;
use super::refusal::{Question, Refusal};
use super::settings::{AgentSettings, AgentToken, AwsSettings, SecretVersion};
use super::text_of;
use crate::error::{Error, ErrorCode, Result};
use crate::http::{self, BodyError, ClientOptions, TransportFailure};
use crate::network::Network;
use crate::origin::Origin;
use crate::provider::{ProviderKind, SecretPayload};
use crate::secret::SecretString;
use crate::steps;

/// The header that proves that a request comes from this machine.
const TOKEN_HEADER: &str = "X-Aws-Parameters-Secrets-Token";

/// A client of one agent.
pub struct AgentClient {
    http: reqwest::Client,
}

/// What the agent may answer from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// Its cache.
    Cached,
    /// Secrets Manager alone, where the agent knows how to be asked that.
    Latest,
}

/// An exchange with the agent that ended in an answer.
struct Reply {
    status: u16,
    retry_after: Option<Duration>,
    body: Zeroizing<Vec<u8>>,
}

/// The agent's answer: that of `GetSecretValue`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    secret_string: Option<String>,
    secret_binary: Option<String>,
    version_id: Option<String>,
}

impl AgentClient {
    /// A client for `agent`.
    pub fn new(agent: &AgentSettings, network: &Network) -> Result<Self> {
        let options = ClientOptions::towards(&Origin::of(&agent.url)?, network);
        Ok(Self { http: http::client(&options)? })
    }

    /// Reads the secret, once. Agents that can't pass their cache by are asked again without.
    pub async fn read(
        &self,
        settings: &AwsSettings,
        agent: &AgentSettings,
        freshness: Freshness,
    ) -> Result<SecretPayload> {
        let place = format!("the Secrets Manager Agent at {}", agent.url);
        let url = question(settings, agent)?;
        let mut latest = url.clone();
        latest.query_pairs_mut().append_pair("refreshNow", "true");
        let reply = match freshness {
            Freshness::Cached => self.ask(url, agent, &place).await?,
            Freshness::Latest => match self.ask(latest, agent, &place).await? {
                Reply { status: 400, body, .. } if refusal_of(&body).0.is_empty() => {
                    self.ask(url, agent, &place).await?
                }
                reply => reply,
            },
        };
        if reply.status == 200 {
            return payload(&reply.body, settings, &place);
        }
        let (code, message) = refusal_of(&reply.body);
        if reply.status == 403 && code.is_empty() {
            return Err(bad_token(&format!("{place} does not accept the token in MLFLOW_AWS_AGENT_TOKEN (HTTP 403)")));
        }
        let question = Question {
            secret: &settings.secret.id,
            version: settings.version.as_ref(),
            place,
            who: "the agent's own identity".to_owned(),
        };
        Err(Refusal { status: reply.status, code, message, retry_after: reply.retry_after }.meaning(&question))
    }

    async fn ask(&self, url: Url, agent: &AgentSettings, place: &str) -> Result<Reply> {
        let failed = |error: &(dyn std::error::Error + 'static)| {
            unreachable(place, TransportFailure::of(error), ErrorCode::AwsAgentUnreachable)
        };
        let mut token = reqwest::header::HeaderValue::from_str(token(agent)?.expose())
            .map_err(|_| bad_token("the agent's token has a character that a header can't have"))?;
        token.set_sensitive(true);
        let asking = steps::asking(ProviderKind::AwsSecretsManager, "GET", &url);
        let answer = self.http.get(url).header(TOKEN_HEADER, token).send().await;
        asking.ended(&answer);
        let answer = answer.map_err(|e| failed(&e))?;
        let status = answer.status().as_u16();
        let retry_after = http::retry_after(answer.headers());
        let body = http::read_body(answer).await.map_err(|e| match e {
            BodyError::Transport(error) => failed(&error),
            BodyError::TooLarge => not_an_answer(place, "it is larger than 1 MiB"),
        })?;
        Ok(Reply { status, retry_after, body: Zeroizing::new(body) })
    }
}

fn question(settings: &AwsSettings, agent: &AgentSettings) -> Result<Url> {
    let mut url = Url::parse(&format!("{}/secretsmanager/get", agent.url))
        .map_err(|_| not_an_answer(&agent.url, "MLFLOW_AWS_AGENT_URL is not a URL"))?;
    let mut query = url.query_pairs_mut();
    query.append_pair("secretId", &settings.secret.id);
    match &settings.version {
        None => {}
        Some(SecretVersion::Stage(stage)) => drop(query.append_pair("versionStage", stage)),
        Some(SecretVersion::Id(id)) => drop(query.append_pair("versionId", id)),
    }
    drop(query);
    Ok(url)
}

fn token(agent: &AgentSettings) -> Result<SecretString> {
    let path: &Path = match &agent.token {
        AgentToken::Value(token) => return Ok(token.clone()),
        AgentToken::File(path) => path,
    };
    let shown = path.display();
    let text = std::fs::read_to_string(path)
        .map_err(|e| bad_token(&format!("the agent's token can't be read from {shown}: {}", http::plain_io(&e))))?;
    match text.trim() {
        "" => Err(bad_token(&format!("the agent's token file {shown} is empty"))),
        token => Ok(SecretString::from(token)),
    }
}

fn payload(body: &[u8], settings: &AwsSettings, place: &str) -> Result<SecretPayload> {
    let no_answer = || not_an_answer(place, "it is not the JSON that the agent sends");
    let answer: Answer = serde_json::from_slice(body).map_err(|_| no_answer())?;
    let binary = answer.secret_binary.map(|text| STANDARD.decode(text)).transpose().map_err(|_| no_answer())?;
    Ok(SecretPayload {
        text: text_of(answer.secret_string, binary),
        version: answer.version_id,
        created_at: None,
        expires_at: None,
        lease: None,
        location: format!("{} (through the agent)", settings.secret.id),
    })
}

/// AWS's name and text for a refusal that the agent hands on; empty for one of its own, which is plain text.
fn refusal_of(body: &[u8]) -> (String, String) {
    let Ok(Value::Object(fields)) = serde_json::from_slice(body) else { return Default::default() };
    let field = |names: [&str; 2]| {
        names.iter().find_map(|name| fields.get(*name)).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let code = field(["__type", "code"]);
    (code.rsplit('#').next().unwrap_or_default().to_owned(), field(["message", "Message"]))
}

fn bad_token(what: &str) -> Error {
    Error::new(
        ErrorCode::AwsAgentToken,
        what,
        "let MLFLOW_AWS_AGENT_TOKEN be the token that the agent was started with, or file:// and the path of its file",
    )
}

fn not_an_answer(place: &str, what: &str) -> Error {
    Error::new(
        ErrorCode::AwsUnexpectedAnswer,
        format!("the answer of {place} can't be read: {what}"),
        "check that MLFLOW_AWS_AGENT_URL is where the agent listens",
    )
}
