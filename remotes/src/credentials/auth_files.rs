use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    time::Duration,
};

use async_trait::async_trait;
use tokio::task::spawn_blocking;

use super::{
    Credential, Credentials,
    auth_file::{AuthFile, HelperName, Source},
    disk,
    edit::{self, Entry},
    helper::{Helper, Helpers},
    json::Malformed,
};
use crate::{Error, Result};

/// How long a helper may take if nobody says otherwise.
const HELPER_TIMEOUT: Duration = Duration::from_secs(30);

/// The credentials of Docker and podman: their files, and the helper programs that these name.
///
/// The files are read whenever something is asked, so that what `docker login` stores meanwhile is seen. The first
/// file that has an answer for a host wins. In each of them the host's entry in `credHelpers` comes first, then an
/// entry in `auths` for a part of the host (podman's `quay.io/team`), then `credsStore`, then the host's entry in
/// `auths`. A helper that does not know the host ends the search in that file, as with Docker. A file may have 4 MiB.
///
/// Helpers are the programs `docker-credential-<name>`. They run in this process's environment, and are killed if
/// they take too long or if the future that waits for them is dropped. What they start themselves is not.
#[derive(Clone, Debug)]
pub struct AuthFiles {
    files: Vec<Place>,
    helpers: Helpers,
}

/// A file that may be there.
#[derive(Clone, Debug)]
struct Place {
    path: PathBuf,
    /// Somebody named this very file, so that it is an error if it is missing.
    required: bool,
}

/// Where [`AuthFiles::store`] has put a credential.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stored {
    /// In this file, which hides it from nobody who may read the file.
    File(PathBuf),
    /// In the keychain of this program.
    Helper(String),
}

impl AuthFiles {
    /// The files that Docker and podman would read here.
    ///
    /// `$REGISTRY_AUTH_FILE` alone if it is set; else `$DOCKER_CONFIG/config.json` alone if that is set; else, as
    /// far as the variables are set,
    ///
    /// 1. `$XDG_RUNTIME_DIR/containers/auth.json`, or `/run/containers/<uid>/auth.json`,
    /// 2. `$XDG_CONFIG_HOME/containers/auth.json`, or `$HOME/.config/containers/auth.json`,
    /// 3. `$HOME/.docker/config.json`.
    ///
    /// An empty variable counts as not set. A missing file has no answers, except for `$REGISTRY_AUTH_FILE`: that is an
    /// error, as it is for podman. Helpers are looked for in `$PATH`. Reads the environment now, the files later.
    pub fn from_env() -> Self {
        Self::from_vars(|name| std::env::var_os(name))
    }

    /// The same as [`from_env`](Self::from_env) for another environment.
    pub fn from_vars(var: impl Fn(&str) -> Option<OsString>) -> Self {
        let var = |name| var(name).filter(|value| !value.is_empty());
        let folder = |name| var(name).map(PathBuf::from);
        let optional = |path| Place { path, required: false };
        let files = if let Some(path) = folder("REGISTRY_AUTH_FILE") {
            vec![Place { path, required: true }]
        } else if let Some(docker) = folder("DOCKER_CONFIG") {
            vec![optional(docker.join("config.json"))]
        } else {
            let home = folder("HOME");
            let run = folder("XDG_RUNTIME_DIR").map(|run| run.join("containers")).unwrap_or_else(|| {
                Path::new("/run/containers").join(rustix::process::getuid().as_raw().to_string())
            });
            let config = folder("XDG_CONFIG_HOME").or_else(|| Some(home.as_ref()?.join(".config")));
            [
                Some(run.join("auth.json")),
                config.map(|config| config.join("containers").join("auth.json")),
                home.map(|home| home.join(".docker").join("config.json")),
            ]
            .into_iter()
            .flatten()
            .map(optional)
            .collect()
        };
        Self { files, helpers: helpers(var("PATH").unwrap_or_default()) }
    }

    /// This file alone, in either tool's format. Looks for helpers in `$PATH`.
    ///
    /// It is an error to ask while it is missing; [`store`](Self::store) creates it.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let files = vec![Place { path: path.into(), required: true }];
        Self { files, helpers: helpers(std::env::var_os("PATH").unwrap_or_default()) }
    }

    /// Looks for helpers in these folders, in the form of `$PATH`; `$PATH` if not set. Relative ones are passed over.
    pub fn helper_path(mut self, path: impl Into<OsString>) -> Self {
        self.helpers.path = path.into();
        self
    }

    /// Gives up on a helper that has not ended after this long. 30 s if not set.
    ///
    /// Some helpers ask a person to unlock a keychain.
    pub fn helper_timeout(mut self, timeout: Duration) -> Self {
        self.helpers.timeout = timeout;
        self
    }

    /// Keeps a credential for a host, in place of any other for it. This is what `login` does at its end.
    ///
    /// It goes to the first file that exists, or to the helper that this file names for the host. If no file exists,
    /// the last one is created, for its owner only: `~/.docker/config.json`, if nothing else is set. The rest of a
    /// file stays as it is, and a reader sees the old file or the new one. All who store this way at the same time, in
    /// any process, wait for each other; Docker and podman do not know of it. If the future is dropped, the credential
    /// is stored or not, and the file is whole.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] for a credential that cannot be kept, or if no file is known. [`Error::File`] if the file does
    /// not parse: it stays as it is. [`Error::Helper`] and [`Error::Io`] if it could not be stored.
    pub async fn store(&self, host: &str, credential: &Credential) -> Result<Stored> {
        check_host(host)?;
        check(credential)?;
        let (path, helper) = self.destination(host).await?;
        let Some(name) = helper else {
            let (host, credential) = (host.to_owned(), credential.clone());
            let set = move |old: &[u8]| edit::set(old, &host, &Entry::Known(&credential)).map(Some);
            return update(path.clone(), set).await.map(|_| Stored::File(path));
        };
        let helper = self.helper(&name, host, &path);
        helper.store(credential).await?;
        let program = helper.program_name();
        // Docker lists the hosts that it is logged in to by these entries. An old password goes, too.
        let host = host.to_owned();
        update(path, move |old| edit::set(old, &host, &Entry::InHelper).map(Some)).await?;
        Ok(Stored::Helper(program))
    }

    /// Forgets what all files, and the helpers that they name, have for a host. This is what `logout` does.
    ///
    /// Answers whether there was something. Some helpers never say, and count as having had it. What podman keeps for
    /// parts of a host, such as `quay.io/team`, stays.
    ///
    /// # Errors
    ///
    /// As for [`store`](Self::store). Whatever fails, the other files are done, too; the first error is the answer.
    pub async fn erase(&self, host: &str) -> Result<bool> {
        check_host(host)?;
        let mut result = Ok(false);
        for place in &self.files {
            let erased = self.erase_from(&place.path, host).await;
            result = match (result, erased) {
                (Ok(before), Ok(now)) => Ok(before | now),
                (Err(error), _) | (_, Err(error)) => Err(error),
            };
        }
        result
    }

    async fn erase_from(&self, path: &Path, host: &str) -> Result<bool> {
        let asked = host.to_owned();
        let Some(helper) = read(path.to_owned(), move |file| Ok(file.helper(&asked))).await? else {
            return Ok(false);
        };
        let in_helper = match helper {
            Some(name) => self.helper(&name, host, path).erase().await?,
            None => false,
        };
        let host = host.to_owned();
        let in_file = update(path.to_owned(), move |old| edit::remove(old, &host)).await?;
        Ok(in_helper | in_file)
    }

    /// The file to store into, and the helper that it names for the host.
    async fn destination(&self, host: &str) -> Result<(PathBuf, Option<HelperName>)> {
        for place in &self.files {
            let asked = host.to_owned();
            if let Some(helper) = read(place.path.clone(), move |file| Ok(file.helper(&asked))).await? {
                return Ok((place.path.clone(), helper));
            }
        }
        match self.files.last() {
            Some(place) => Ok((place.path.clone(), None)),
            None => Err(config("no file for credentials is known; set HOME or REGISTRY_AUTH_FILE")),
        }
    }

    fn helper<'a>(&'a self, name: &'a HelperName, host: &'a str, file: &'a Path) -> Helper<'a> {
        Helper { helpers: &self.helpers, name, host, file }
    }
}

#[async_trait]
impl Credentials for AuthFiles {
    async fn find(&self, host: &str, repository: Option<&str>) -> Result<Option<Credential>> {
        check_host(host)?;
        for Place { path, required } in &self.files {
            let (asked, part) = (host.to_owned(), repository.map(str::to_owned));
            let source = match read(path.clone(), move |file| file.source(&asked, part.as_deref())).await? {
                Some(source) => source,
                None if *required => {
                    let reason = "there is no such file; log in to create it, or name another one".into();
                    return Err(Error::File { path: path.clone(), line: None, reason });
                }
                None => continue,
            };
            let found = match source {
                Source::Known(credential) => Some(credential),
                Source::Helper(name) => self.helper(&name, host, path).get().await?,
                Source::Nowhere => None,
            };
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }
}

fn helpers(path: OsString) -> Helpers {
    Helpers { path, timeout: HELPER_TIMEOUT }
}

/// Reads a file, and asks it something. `None` if there is none.
async fn read<T, F>(path: PathBuf, ask: F) -> Result<Option<T>>
where
    T: Send + 'static,
    F: FnOnce(&AuthFile<'_>) -> Result<T, Malformed> + Send + 'static,
{
    spawn_blocking(move || {
        let Some(bytes) = disk::read(&path)? else {
            return Ok(None);
        };
        let answer = AuthFile::parse(&bytes).and_then(|file| ask(&file));
        answer.map(Some).map_err(|why| disk::unusable(&path, why))
    })
    .await
    .expect("reading a file neither panics nor is aborted")
}

async fn update<F>(path: PathBuf, edit: F) -> Result<bool>
where
    F: FnOnce(&[u8]) -> Result<Option<Vec<u8>>, Malformed> + Send + 'static,
{
    spawn_blocking(move || disk::update(&path, edit))
        .await
        .expect("writing a file neither panics nor is aborted")
}

/// Refuses what would be a URL, a path or several lines in a file or for a helper.
fn check_host(host: &str) -> Result<()> {
    let wrong = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '/' | '@');
    match host.is_empty() || host.contains(wrong) {
        true => Err(config(&format!("{host:?} is not a host"))),
        false => Ok(()),
    }
}

/// Refuses what would come out of the files as something else.
fn check(credential: &Credential) -> Result<()> {
    match credential {
        Credential::Password { user, .. } if user.is_empty() || user.contains(':') => {
            Err(config("a user's name is not empty and has no colon"))
        }
        Credential::Password { password, .. } if password.reveal().ends_with('\0') => {
            Err(config("a password does not end with a null character"))
        }
        Credential::IdentityToken(token) | Credential::AccessToken(token) if token.reveal().is_empty() => {
            Err(config("a token is not empty"))
        }
        _ => Ok(()),
    }
}

fn config(reason: &str) -> Error {
    Error::Config { reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_says_where_to_look() {
        let uid = rustix::process::getuid().as_raw();
        for (vars, want) in [
            (
                vec![("HOME", "/h"), ("XDG_RUNTIME_DIR", "/r"), ("XDG_CONFIG_HOME", "/c")],
                vec!["/r/containers/auth.json", "/c/containers/auth.json", "/h/.docker/config.json"],
            ),
            (
                vec![("HOME", "/h"), ("XDG_RUNTIME_DIR", "/r"), ("DOCKER_CONFIG", "")],
                vec!["/r/containers/auth.json", "/h/.config/containers/auth.json", "/h/.docker/config.json"],
            ),
            (vec![], vec![&*format!("/run/containers/{uid}/auth.json")]),
            (vec![("HOME", "/h"), ("DOCKER_CONFIG", "/d")], vec!["/d/config.json"]),
            (vec![("DOCKER_CONFIG", "/d"), ("REGISTRY_AUTH_FILE", "/a.json")], vec!["/a.json"]),
        ] {
            let find = |name: &str| Some(vars.iter().find(|(var, _)| *var == name)?.1.into());
            let files = AuthFiles::from_vars(find);
            let paths: Vec<_> =
                files.files.iter().map(|place| place.path.to_str().expect("it is UTF-8")).collect();
            assert_eq!(paths, want, "{vars:?}");
        }
    }
}
