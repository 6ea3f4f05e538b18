//! The programs that keep credentials in a keychain: `docker-credential-<name>`.

use std::{
    ffi::OsString,
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt, copy, sink},
    process::{Child, Command},
    time::timeout,
};

use super::{Credential, Secret, auth_file::HelperName};
use crate::{Error, Result};

/// The user that stands for "the secret is an identity token".
const TOKEN_USER: &str = "<token>";
/// What a helper says of a host that it does not know.
const NOT_FOUND: &str = "credentials not found in native keychain";
/// The most that a helper may answer, in bytes.
const ANSWER: u64 = 1 << 20;
/// How much of a helper's complaints is looked at, in bytes.
const COMPLAINTS: u64 = 4 << 10;
/// How much of a complaint is repeated, in characters.
const SHOWN: usize = 200;

/// Where helpers are, and how long they may take.
#[derive(Clone, Debug)]
pub(super) struct Helpers {
    /// As in `$PATH`.
    pub(super) path: OsString,
    pub(super) timeout: Duration,
}

/// A helper that is to be asked about a host.
pub(super) struct Helper<'a> {
    pub(super) helpers: &'a Helpers,
    pub(super) name: &'a HelperName,
    /// The host, for errors.
    pub(super) host: &'a str,
    /// The file that names the helper.
    pub(super) file: &'a Path,
}

/// What came of a run.
enum Outcome {
    /// It did what was asked, and wrote this.
    Done(Vec<u8>),
    /// It does not know the host.
    NotFound,
}

/// A credential as helpers write it.
#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Answer {
    username: String,
    secret: String,
}

/// A credential as helpers read it.
#[derive(Serialize)]
struct Keep<'a> {
    #[serde(rename = "ServerURL")]
    server: &'a str,
    #[serde(rename = "Username")]
    username: &'a str,
    #[serde(rename = "Secret")]
    secret: &'a str,
}

impl Helper<'_> {
    /// Asks for the host's credential.
    pub(super) async fn get(&self) -> Result<Option<Credential>> {
        let Outcome::Done(answer) = self.run("get", self.name.server.as_bytes(), None).await? else {
            return Ok(None);
        };
        let Answer { username, secret } = serde_json::from_slice(&answer)
            .map_err(|_| self.error("what it answered to `get` is not a credential in JSON"))?;
        Ok(match username.as_str() {
            "" if secret.is_empty() => None,
            TOKEN_USER => Some(Credential::IdentityToken(Secret::new(secret))),
            _ => Some(Credential::Password { user: username, password: Secret::new(secret) }),
        })
    }

    /// Has it keep a credential for the host, in place of any that it has.
    pub(super) async fn store(&self, credential: &Credential) -> Result<()> {
        let (username, secret) = match credential {
            Credential::Password { user, password } => (user.as_str(), password.reveal()),
            Credential::IdentityToken(token) => (TOKEN_USER, token.reveal()),
            Credential::AccessToken(_) => {
                return Err(
                    self.error("helpers cannot keep access tokens, only passwords and identity tokens")
                );
            }
        };
        let keep = Keep { server: &self.name.server, username, secret };
        let keep = serde_json::to_vec(&keep).expect("texts can be written as JSON");
        match self.run("store", &keep, Some(secret)).await? {
            Outcome::Done(_) => Ok(()),
            Outcome::NotFound => Err(self.error(format!("it answered to `store`: {NOT_FOUND}"))),
        }
    }

    /// Has it forget the host's credential. Answers whether it had one, as far as it says.
    pub(super) async fn erase(&self) -> Result<bool> {
        let outcome = self.run("erase", self.name.server.as_bytes(), None).await?;
        Ok(matches!(outcome, Outcome::Done(_)))
    }

    /// Runs it. Whether it ends in time, takes too long or nobody waits any more: it does not live on.
    async fn run(&self, verb: &str, input: &[u8], secret: Option<&str>) -> Result<Outcome> {
        let program = self.program()?;
        let mut child = Command::new(program)
            .arg(verb)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| self.error(self.advise(&format!("it cannot be started: {error}"))))?;
        let limit = self.helpers.timeout;
        let why = match timeout(limit, converse(&mut child, input)).await {
            Ok(Ok((status, stdout, _))) if status.success() => return Ok(Outcome::Done(stdout)),
            Ok(Ok((_, stdout, _))) if says_not_found(&stdout) => return Ok(Outcome::NotFound),
            Ok(Ok((status, stdout, stderr))) => {
                let said = [stdout, stderr].iter().find_map(|said| complaint(said, secret));
                let said = said.map(|said| format!(", saying: {said}")).unwrap_or_default();
                format!("`{verb}` ended with {status}{said}")
            }
            Ok(Err(error)) => format!("`{verb}`: {error}"),
            Err(_) => format!("`{verb}` did not end within {limit:?}"),
        };
        // It may have ended by itself; what went wrong before is what the caller needs to know.
        let _ = child.kill().await;
        Err(self.error(self.advise(&why)))
    }

    /// Finds the program, as a shell would, but never relative to the working directory.
    fn program(&self) -> Result<PathBuf> {
        let name = &self.name.name;
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '+');
        if name.is_empty() || !name.chars().all(plain) {
            let file = self.file.display();
            return Err(self.error(format!("its name in {file} is not that of a program; correct it there")));
        }
        let program = program_name(name);
        let found = std::env::split_paths(&self.helpers.path)
            .filter(|folder| folder.is_absolute())
            .map(|folder| folder.join(&program))
            .find(|path| is_program(path));
        found.ok_or_else(|| {
            let file = self.file.display();
            self.error(format!(
                "there is no such program in PATH; install {program} or remove it from {file}"
            ))
        })
    }

    /// The program's name, for people.
    pub(super) fn program_name(&self) -> String {
        program_name(&printable(&self.name.name))
    }

    fn advise(&self, why: &str) -> String {
        format!("{why}; see that it works, or remove it from {}", self.file.display())
    }

    fn error(&self, reason: impl Into<String>) -> Error {
        Error::Helper { helper: self.program_name(), host: self.host.to_owned(), reason: reason.into() }
    }
}

fn program_name(name: &str) -> String {
    format!("docker-credential-{name}")
}

fn is_program(path: &Path) -> bool {
    path.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}

/// Tells a program all of `input`, and listens until it ends.
async fn converse(child: &mut Child, input: &[u8]) -> io::Result<(ExitStatus, Vec<u8>, Vec<u8>)> {
    let mut stdin = child.stdin.take().expect("it was asked for");
    let stdout = child.stdout.take().expect("it was asked for");
    let stderr = child.stderr.take().expect("it was asked for");
    let tell = async move {
        match stdin.write_all(input).await {
            // It knew enough before it had read all.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            other => other,
        }
    };
    let (_, stdout, stderr, status) = tokio::try_join!(tell, all(stdout), beginning(stderr), child.wait())?;
    Ok((status, stdout, stderr))
}

/// Reads to the end, which must come before the limit.
async fn all(from: impl AsyncRead + Unpin) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(ANSWER + 1).read_to_end(&mut bytes).await?;
    match bytes.len() as u64 > ANSWER {
        true => Err(io::Error::other(format!("it answered more than {ANSWER} bytes"))),
        false => Ok(bytes),
    }
}

/// Reads to the end, and keeps the beginning: who may not write does not end.
async fn beginning(mut from: impl AsyncRead + Unpin) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    (&mut from).take(COMPLAINTS).read_to_end(&mut bytes).await?;
    copy(&mut from, &mut sink()).await?;
    Ok(bytes)
}

fn says_not_found(stdout: &[u8]) -> bool {
    String::from_utf8_lossy(stdout).lines().any(|line| line.trim() == NOT_FOUND)
}

/// What a failed helper says of its failure, in one line. `None` if there is nothing that may be shown.
///
/// Helpers complain where they would answer, too. So only a sentence is repeated: a bare word may be a token or a
/// password, and anything near JSON may be a credential.
fn complaint(said: &[u8], secret: Option<&str>) -> Option<String> {
    let said = String::from_utf8_lossy(said);
    let holds_secret = secret.is_some_and(|secret| !secret.is_empty() && said.contains(secret));
    if holds_secret || said.contains(['{', '[']) {
        return None;
    }
    let sentence = said.lines().map(printable).find(|line| line.contains(' '))?;
    Some(sentence)
}

/// A text without control characters and blanks around it, shortened.
fn printable(text: &str) -> String {
    let text: String = text.chars().filter(|c| !c.is_control()).collect();
    let text = text.trim();
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_sentence_is_repeated() {
        for (said, want) in [
            ("pass not initialized: exit status 1\n", Some("pass not initialized: exit status 1")),
            ("\x1b[31m\n\n", None),
            ("\n  no such\u{7} host \r\nand more\n", Some("no such host")),
            (
                r#"exec: "gpg": executable file not found in $PATH"#,
                Some(r#"exec: "gpg": executable file not found in $PATH"#),
            ),
            ("hunter2", None),
            ("token\nit is locked", Some("it is locked")),
            (r#"{"Username": "me", "Secret": "word"}"#, None),
            ("{\n  \"Secret\": \"word\"\n}", None),
            ("cannot store {\"Secret\": \"word\"}", None),
            ("cannot store the-secret", None),
            ("", None),
        ] {
            assert_eq!(complaint(said.as_bytes(), Some("the-secret")).as_deref(), want, "{said:?}");
        }
        let long = complaint("a ".repeat(1000).as_bytes(), None).expect("it is a sentence");
        assert_eq!(long.chars().count(), SHOWN + 1);
    }
}
