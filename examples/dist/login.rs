//! `login` and `logout`: who we are at a registry.

use std::io::{self, IsTerminal, Read, Write};

use anyhow::{Context, bail};
use windlass::remotes::credentials::{Credential, Secret, Stored};

use crate::{cli::LoginArgs, settings::Settings};

/// A longer password on stdin is no password, in bytes.
const LONGEST: u64 = 64 << 10;

pub(crate) async fn login(settings: &Settings, arguments: LoginArgs) -> anyhow::Result<()> {
    let LoginArgs { host, username, password_stdin } = arguments;
    let user = match username {
        Some(user) => user,
        None => ask_user()?,
    };
    let password = if password_stdin { read_password()? } else { ask_password()? };
    if password.is_empty() {
        bail!("the password is empty");
    }
    let registry = settings.registry_settings().credentials(&host, &user, &password).build()?;
    registry.ping(&host).await.with_context(|| format!("cannot log in to {host}"))?;
    let credential = Credential::Password { user, password: Secret::new(password) };
    match settings.logins().store(&host, &credential).await? {
        Stored::Helper(helper) => {
            eprintln!("logged in to {host}; the password is kept by {helper}");
        }
        Stored::File(path) => {
            eprintln!("logged in to {host}; the password is in {}, not encrypted", path.display());
        }
    }
    Ok(())
}

pub(crate) async fn logout(settings: &Settings, host: &str) -> anyhow::Result<()> {
    match settings.logins().erase(host).await? {
        true => eprintln!("logged out of {host}"),
        false => eprintln!("not logged in to {host}"),
    }
    Ok(())
}

fn ask_user() -> anyhow::Result<String> {
    if !io::stdin().is_terminal() {
        bail!("who? Say it with --username");
    }
    eprint!("Username: ");
    io::stderr().flush()?;
    let mut line = String::new();
    io::stdin().read_line(&mut line)?;
    Ok(line.trim().to_owned())
}

fn ask_password() -> anyhow::Result<String> {
    if !io::stdin().is_terminal() {
        bail!("stdin is no terminal to ask for the password; use --password-stdin");
    }
    Ok(rpassword::prompt_password("Password: ")?)
}

/// All of stdin, without the line's end that `echo` adds.
fn read_password() -> anyhow::Result<String> {
    let mut password = String::new();
    io::stdin()
        .lock()
        .take(LONGEST)
        .read_to_string(&mut password)
        .context("cannot read the password from stdin")?;
    Ok(password.trim_end_matches(['\r', '\n']).to_owned())
}
