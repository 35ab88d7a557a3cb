//! Runs a developer's tool for the SDK: not longer than the fetch lasts, and with an error that says what to do.
//!
//! The SDK's own way of running it has no end, and its other one needs tokio's `process`, which leaves state that a forked
//! child shares with its parent.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use azure_identity::Executor;
use tokio::sync::oneshot;

use super::client::aadsts_in;
use crate::error::{Error, ErrorCode};
use crate::http::plain_io;

/// No output that we want is larger.
const MAX_OUTPUT: u64 = 1 << 20;

/// `sh`'s exit status for a command that it does not find.
const NOT_FOUND: i32 = 127;

/// A tool, by the name of its command.
#[derive(Clone, Copy, Debug)]
pub struct Tool {
    /// Its command.
    pub command: &'static str,
    /// Its name.
    pub name: &'static str,
    /// What logs a person in.
    pub log_in: &'static str,
}

/// The Azure CLI.
pub const AZURE_CLI: Tool = Tool { command: "az", name: "the Azure CLI", log_in: "az login" };

/// The Azure Developer CLI.
pub const AZURE_DEVELOPER_CLI: Tool =
    Tool { command: "azd", name: "the Azure Developer CLI", log_in: "azd auth login" };

/// The tool is not installed.
#[derive(Debug)]
pub struct NotInstalled(pub Tool);

impl std::fmt::Display for NotInstalled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} is not on the PATH", self.0.command)
    }
}

impl std::error::Error for NotInstalled {}

/// The child of a fetch. When the fetch is given up, so is the child, with everything that it started.
struct Leash(Arc<Mutex<Option<Child>>>);

impl Drop for Leash {
    fn drop(&mut self) {
        // Taken by the thread that waits once the child has ended: then its number may already be another's.
        let Some(child) = &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner) else { return };
        end(child);
    }
}

/// Ends the child's whole group, because the tools are scripts that start others.
#[cfg(unix)]
fn end(child: &mut Child) {
    if let Ok(group) = libc::pid_t::try_from(child.id()) {
        // SAFETY: a plain system call. The child is not reaped yet, so the group's number still belongs to it.
        unsafe { libc::killpg(group, libc::SIGKILL) };
    }
}

#[cfg(not(unix))]
fn end(child: &mut Child) {
    // An error means that it has ended by itself.
    let _ = child.kill();
}

#[async_trait]
impl Executor for Tool {
    async fn run(&self, program: &OsStr, args: &[&OsStr]) -> io::Result<Output> {
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child = command.spawn().map_err(|e| io::Error::other(self.failed(&plain_io(&e))))?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let shared = Arc::new(Mutex::new(Some(child)));
        let leash = Leash(Arc::clone(&shared));
        let (sender, receiver) = oneshot::channel();
        std::thread::Builder::new().name("mlflow-secrets-auth".to_owned()).spawn(move || {
            let stderr = std::thread::spawn(move || read(stderr));
            let stdout = read(stdout);
            let stderr = stderr.join().unwrap_or_default();
            let status = reap(&shared);
            // Nobody listens any more when the fetch was given up.
            let _ = sender.send(status.map(|status| Output { status, stdout, stderr }));
        })?;
        let output = receiver.await.map_err(io::Error::other)??;
        drop(leash);
        if output.status.success() {
            return Ok(output);
        }
        Err(self.refused(&output))
    }
}

impl Tool {
    fn refused(&self, output: &Output) -> io::Error {
        let said = String::from_utf8_lossy(&output.stderr);
        if output.status.code() == Some(NOT_FOUND) || said.contains("' is not recognized") {
            return io::Error::other(NotInstalled(*self));
        }
        let number = aadsts_in(&said).map(|number| format!("AADSTS{number}: ")).unwrap_or_default();
        io::Error::other(self.failed(&format!("{number}{}", first_line(&said))))
    }

    fn failed(&self, why: &str) -> Error {
        let why = if why.is_empty() { "it did not say why" } else { why };
        Error::new(
            ErrorCode::AzureToolFailed,
            format!("{} gave no token: {why}", self.name),
            format!("run `{}`", self.log_in),
        )
    }
}

/// Waits for the child, which has closed its outputs, and takes it off the leash before its number is free again.
fn reap(shared: &Mutex<Option<Child>>) -> io::Result<ExitStatus> {
    loop {
        {
            let mut slot = shared.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(child) = &mut *slot else { return Err(io::ErrorKind::NotFound.into()) };
            if let Some(status) = child.try_wait()? {
                *slot = None;
                return Ok(status);
            }
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

fn read(pipe: Option<impl Read>) -> Vec<u8> {
    let mut text = Vec::new();
    if let Some(pipe) = pipe {
        // What could be read before an error is all there is.
        let _ = pipe.take(MAX_OUTPUT).read_to_end(&mut text);
    }
    text
}

/// What the tool says first, made for one line. A line that might hold a token is not shown.
fn first_line(text: &str) -> String {
    // azd wraps what it says into JSON.
    let wrapped: Option<serde_json::Value> = text.lines().find_map(|line| serde_json::from_str(line).ok());
    let inner = wrapped.as_ref().and_then(|json| json.pointer("/data/message")).and_then(serde_json::Value::as_str);
    let line = inner.unwrap_or(text).lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
    let line = line.trim_start_matches("ERROR:").trim_start();
    if line.contains("eyJ") || line.contains("accessToken") {
        return String::new();
    }
    line.chars().filter(|c| !c.is_control()).take(200).collect()
}
