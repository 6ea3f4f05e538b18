//! What Docker's and podman's files promise, asked through the public API.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    os::unix::fs::{MetadataExt, symlink},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use tempfile::TempDir;
use windlass_remotes::{
    Error,
    credentials::{AuthFiles, Credential, Credentials, Secret, Stored},
};

/// A user's home, with helpers that do what a test says.
struct Home {
    folder: TempDir,
    vars: BTreeMap<&'static str, OsString>,
}

impl Home {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name| folder.path().join(name).into_os_string();
        let vars = [("HOME", path("")), ("XDG_RUNTIME_DIR", path("run")), ("PATH", path("bin"))].into();
        Self { folder, vars }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file, and the folders that it is in.
    fn file(self, name: &str, text: &str) -> Self {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("it is in the home")).expect("a folder");
        fs::write(path, text).expect("it can be written");
        self
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// Installs a helper that runs a shell script; `$HERE` is the home.
    fn helper(self, name: &str, script: &str) -> Self {
        let program = format!("bin/docker-credential-{name}");
        let script = format!("HERE='{}'\n{script}\n", self.folder.path().display());
        let home = self.file(&format!("{program}.sh"), &script);
        let stand_in = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/helpers/beside.sh");
        symlink(stand_in, home.path(&program)).expect("it can be linked");
        home
    }

    fn var(mut self, name: &'static str, file: &str) -> Self {
        self.vars.insert(name, self.path(file).into_os_string());
        self
    }

    fn credentials(&self) -> AuthFiles {
        AuthFiles::from_vars(|name| self.vars.get(name).cloned())
    }

    async fn find(&self, host: &str) -> Result<Option<Credential>, Error> {
        self.credentials().find(host, Some("team/app")).await
    }
}

const DOCKER: &str = ".docker/config.json";
const PODMAN: &str = "run/containers/auth.json";
const PODMAN_OLD: &str = ".config/containers/auth.json";

fn user(user: &str) -> Credential {
    login(user, "")
}

fn login(user: &str, password: &str) -> Credential {
    Credential::Password { user: user.into(), password: Secret::new(password) }
}

fn auths(host: &str, user: &str) -> String {
    format!(r#"{{"auths": {{"{host}": {{"username": "{user}"}}}}}}"#)
}

#[tokio::test]
async fn the_first_file_that_has_an_answer_wins() {
    let home = Home::new()
        .file(PODMAN, &auths("a.example", "podman"))
        .file(PODMAN_OLD, &auths("b.example", "old"))
        .file(
            DOCKER,
            r#"{"auths": {"a.example": {"username": "docker"}, "c.example": {"username": "docker"}}}"#,
        );

    for (host, want) in [
        ("a.example", Some(user("podman"))),
        ("b.example", Some(user("old"))),
        ("c.example", Some(user("docker"))),
        ("d.example", None),
    ] {
        assert_eq!(home.find(host).await.expect(host), want, "{host}");
    }
}

#[tokio::test]
async fn without_any_file_everybody_is_anonymous() {
    assert_eq!(Home::new().find("a.example").await.expect("nothing is wrong"), None);
    let empty = AuthFiles::from_vars(|name| (name == "DOCKER_CONFIG").then(|| "/nonexistent".into()));
    assert_eq!(empty.find("a.example", None).await.expect("nothing is wrong"), None);
}

#[tokio::test]
async fn a_file_that_was_asked_for_by_name_must_be_there() {
    let home = Home::new().file(DOCKER, &auths("a.example", "docker")).var("REGISTRY_AUTH_FILE", "my.json");

    let err = home.find("a.example").await.expect_err("it is not there");
    let stored = home.credentials().store("b.example", &user("me")).await.expect("it is created");

    let my = home.path("my.json");
    assert_eq!(
        err.to_string(),
        format!(
            "cannot use {}: there is no such file; log in to create it, or name another one",
            my.display()
        )
    );
    assert_eq!(stored, Stored::File(my));
    assert_eq!(home.find("b.example").await.expect("it is there now"), Some(user("me")));
    assert_eq!(home.find("a.example").await.expect("the others are not asked"), None);
}

#[tokio::test]
async fn a_file_that_cannot_be_used_is_an_error_even_if_the_next_one_has_an_answer() {
    let home =
        Home::new().file(PODMAN, "{\n  \"auths\": oops\n}").file(DOCKER, &auths("a.example", "docker"));
    let podman = home.path(PODMAN);

    let err = home.find("a.example").await.expect_err("it does not parse");
    fs::remove_file(&podman).and_then(|()| fs::create_dir(&podman)).expect("it is ours");
    let unreadable = home.find("a.example").await.expect_err("it is a folder");

    let path = podman.display();
    assert_eq!(err.to_string(), format!("cannot use {path}, line 2: it is not JSON at column 12"));
    assert!(matches!(&unreadable, Error::File { path, line: None, .. } if *path == podman), "{unreadable}");
}

#[tokio::test]
async fn a_helper_says_who_to_be() {
    for (script, want) in [
        (r#"echo '{"ServerURL": "x", "Username": "me", "Secret": "pw"}'"#, Some(login("me", "pw"))),
        (
            r#"echo '{"Username": "<token>", "Secret": "t"}'"#,
            Some(Credential::IdentityToken(Secret::new("t"))),
        ),
        (r#"cat > /dev/null; echo '{"Username": "", "Secret": ""}'"#, None),
        ("echo credentials not found in native keychain; exit 1", None),
        (
            "head -c 300000 /dev/zero >&2; echo '{\"Username\": \"noisy\", \"Secret\": \"\"}'",
            Some(user("noisy")),
        ),
    ] {
        let home = Home::new().file(DOCKER, r#"{"credsStore": "test"}"#).helper("test", script);
        assert_eq!(home.find("r.example").await.expect(script), want, "{script}");
    }
}

#[tokio::test]
async fn a_helper_is_asked_for_what_the_host_is_called_in_the_keychain() {
    let home = Home::new()
        .file(DOCKER, r#"{"credsStore": "all", "credHelpers": {"own.example": "own"}}"#)
        .helper("all", r#"echo "{\"Username\": \"all $1 $(cat)\"}""#)
        .helper("own", r#"echo "{\"Username\": \"own $1 $(cat)\"}""#);

    for (host, name) in [
        ("docker.io", "all get https://index.docker.io/v1/"),
        ("r.example:5000", "all get r.example:5000"),
        ("own.example", "own get own.example"),
    ] {
        assert_eq!(home.find(host).await.expect(host), Some(user(name)), "{host}");
    }
}

#[tokio::test]
async fn a_helper_that_does_not_know_leaves_the_question_to_the_next_file() {
    let home = Home::new()
        .file(
            PODMAN,
            r#"{"credHelpers": {"r.example": "test"}, "auths": {"r.example": {"username": "stale"}}}"#,
        )
        .file(DOCKER, &auths("r.example", "docker"))
        .helper("test", "echo credentials not found in native keychain; exit 1");

    assert_eq!(home.find("r.example").await.expect("nothing is wrong"), Some(user("docker")));
}

#[tokio::test]
async fn a_helper_that_fails_says_what_to_do() {
    for (name, script, reason) in [
        (
            "none",
            "",
            "there is no such program in PATH; install docker-credential-none or remove it from FILE",
        ),
        ("../evil", "", "its name in FILE is not that of a program; correct it there"),
        ("a b", "", "its name in FILE is not that of a program; correct it there"),
        (
            "test",
            "echo the keychain is locked; exit 1",
            "`get` ended with exit status: 1, saying: the keychain is locked; see that it works, or remove it from FILE",
        ),
        (
            "test",
            "echo no daemon >&2; exit 3",
            "`get` ended with exit status: 3, saying: no daemon; see that it works, or remove it from FILE",
        ),
        (
            "test",
            "kill -9 $$",
            "`get` ended with signal: 9 (SIGKILL); see that it works, or remove it from FILE",
        ),
        ("test", "", "what it answered to `get` is not a credential in JSON"),
        (
            "test",
            "exec cat /dev/zero",
            "`get`: it answered more than 1048576 bytes; see that it works, or remove it from FILE",
        ),
    ] {
        let file = format!(r#"{{"credsStore": "{name}"}}"#);
        let home = Home::new().file(DOCKER, &file).helper("test", script);

        let err = home.find("r.example").await.expect_err(reason);

        let want = format!("credential helper docker-credential-{name} failed for r.example: {reason}");
        let want = want.replace("FILE", &home.path(DOCKER).display().to_string());
        assert_eq!(err.to_string(), want, "{script}");
    }
}

/// Whether a process that wrote its id into a file still runs, or waits for somebody to take note of its end.
fn is_there(pid: &str) -> bool {
    Path::new("/proc").join(pid.trim()).exists()
}

const SLOW: &str = r#"echo $$ > "$HERE/pid.new"; mv "$HERE/pid.new" "$HERE/pid"; exec sleep 60"#;

#[tokio::test]
async fn a_helper_that_takes_too_long_is_killed() {
    let home = Home::new().file(DOCKER, r#"{"credsStore": "slow"}"#).helper("slow", SLOW);
    let credentials = home.credentials().helper_timeout(Duration::from_secs(1));
    let start = Instant::now();

    let err = credentials.find("r.example", None).await.expect_err("it takes a minute");

    assert!(start.elapsed() < Duration::from_secs(30));
    assert!(err.to_string().contains("`get` did not end within 1s"), "{err}");
    assert!(!is_there(&home.text("pid")));
}

#[tokio::test]
async fn a_helper_that_nobody_waits_for_is_killed() {
    let home = Home::new().file(DOCKER, r#"{"credsStore": "slow"}"#).helper("slow", SLOW);
    let pid = home.path("pid");
    let started = async {
        while !pid.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };

    tokio::select! {
        found = home.find("r.example") => panic!("it takes a minute: {found:?}"),
        () = started => {}
    }

    let gone = async {
        while is_there(&home.text("pid")) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), gone).await.expect("it is killed and reaped");
}

#[tokio::test]
async fn what_is_stored_is_found_until_it_is_erased() {
    let home = Home::new();
    let credentials = home.credentials();
    for credential in [
        login("me", "pa:ss wörd"),
        Credential::IdentityToken(Secret::new("t")),
        Credential::AccessToken(Secret::new("t")),
    ] {
        let stored = credentials.store("r.example:5000", &credential).await.expect("it can be stored");
        let found = credentials.find("r.example:5000", None).await.expect("it parses");
        let erased = credentials.erase("r.example:5000").await.expect("it can be erased");
        let again = credentials.erase("r.example:5000").await.expect("nothing is wrong");

        assert_eq!(stored, Stored::File(home.path(DOCKER)));
        assert_eq!((found, erased, again), (Some(credential), true, false));
        assert_eq!(credentials.find("r.example:5000", None).await.expect("it parses"), None);
    }
    assert_eq!(fs::metadata(home.path(DOCKER)).expect("it is there").mode() & 0o777, 0o600);
}

#[tokio::test]
async fn a_credential_goes_to_the_file_that_is_asked_first_and_leaves_all_of_them() {
    let home = Home::new()
        .file(PODMAN_OLD, &auths("r.example", "old"))
        .file(DOCKER, r#"{"auths": {"https://r.example/v2/": {"username": "docker"}, "s.example": {}}}"#);
    let credentials = home.credentials();

    let stored = credentials.store("r.example", &user("me")).await.expect("it can be stored");
    let found = home.find("r.example").await.expect("it parses");
    let erased = credentials.erase("r.example").await.expect("it can be erased");

    assert_eq!(stored, Stored::File(home.path(PODMAN_OLD)));
    assert_eq!((found, erased), (Some(user("me")), true));
    assert_eq!(home.find("r.example").await.expect("it parses"), None);
    assert_eq!(home.text(DOCKER), "{\n\t\"auths\": {\n\t\t\"s.example\": {}\n\t}\n}\n");
}

#[tokio::test]
async fn a_helper_keeps_the_secret_and_the_file_that_there_is_one() {
    let home = Home::new()
        .file(
            DOCKER,
            r#"{"credsStore": "test", "auths": {"https://index.docker.io/v1/": {"auth": "bWU6b2xk"}}}"#,
        )
        .helper(
            "test",
            r#"case $1 in
                store) cat > "$HERE/kept" ;;
                get) cat "$HERE/kept" ;;
                erase) cat > "$HERE/erased"; [ -e "$HERE/kept" ] && rm "$HERE/kept" ||
                    { echo credentials not found in native keychain; exit 1; } ;;
            esac"#,
        );
    let credentials = home.credentials();

    let stored = credentials.store("docker.io", &login("me", "pw")).await.expect("the helper takes it");

    assert_eq!(stored, Stored::Helper("docker-credential-test".into()));
    assert_eq!(
        home.text("kept"),
        r#"{"ServerURL":"https://index.docker.io/v1/","Username":"me","Secret":"pw"}"#
    );
    assert!(home.text(DOCKER).contains(r#""https://index.docker.io/v1/": {}"#), "{}", home.text(DOCKER));
    assert_eq!(home.find("docker.io").await.expect("the helper answers"), Some(login("me", "pw")));

    assert!(credentials.erase("docker.io").await.expect("the helper forgets"));

    assert_eq!(home.text("erased"), "https://index.docker.io/v1/");
    assert!(!home.text(DOCKER).contains("index.docker.io"), "{}", home.text(DOCKER));
    assert!(!credentials.erase("docker.io").await.expect("nothing is wrong"));
}

#[tokio::test]
async fn what_a_helper_refuses_to_keep_is_not_kept_in_the_file_either() {
    let file = r#"{"credsStore": "test", "auths": {}}"#;
    let home = Home::new().file(DOCKER, file).helper("test", "echo not implemented yet; exit 1");
    let credentials = home.credentials();

    for credential in [login("me", "pw"), Credential::AccessToken(Secret::new("t"))] {
        let err = credentials.store("r.example", &credential).await.expect_err("it refuses");
        assert!(matches!(err, Error::Helper { .. }), "{err}");
    }
    let err = credentials.erase("r.example").await.expect_err("it refuses");

    assert!(
        err.to_string().contains("`erase` ended with exit status: 1, saying: not implemented yet"),
        "{err}"
    );
    assert_eq!(home.text(DOCKER), file);
}

#[tokio::test]
async fn one_file_that_cannot_be_used_does_not_keep_a_credential_in_the_others() {
    let home = Home::new().file(PODMAN, "{").file(DOCKER, &auths("r.example", "docker"));

    let err = home.credentials().erase("r.example").await.expect_err("the first does not parse");

    assert!(matches!(&err, Error::File { path, .. } if *path == home.path(PODMAN)), "{err}");
    assert!(!home.text(DOCKER).contains("r.example"));
}

#[tokio::test]
async fn those_who_store_at_the_same_time_lose_nothing() {
    let home = Home::new();
    let hosts: Vec<String> = (0..32).map(|number| format!("r{number}.example")).collect();

    let stores = hosts.iter().map(|host| {
        let (credentials, host) = (home.credentials(), host.clone());
        tokio::spawn(async move { credentials.store(&host, &user(&host)).await })
    });
    for store in stores.collect::<Vec<_>>() {
        store.await.expect("it does not panic").expect("it can be stored");
    }

    for host in &hosts {
        assert_eq!(home.find(host).await.expect(host), Some(user(host)));
    }
}

#[tokio::test]
async fn what_could_not_be_read_back_is_refused() {
    let credentials = Home::new().credentials();
    for (host, credential) in [
        ("r.example", user("")),
        ("r.example", user("a:b")),
        ("r.example", login("me", "pw\0")),
        ("r.example", Credential::IdentityToken(Secret::new(""))),
        ("", user("me")),
        ("r.example/team", user("me")),
        ("https://r.example", user("me")),
        ("r.example\nother", user("me")),
    ] {
        let err = credentials.store(host, &credential).await.expect_err(host);
        assert!(matches!(err, Error::Config { .. }), "{host} {credential:?}: {err}");
    }
}

/// Whatever goes wrong, neither the message nor the `Debug` form of the error says `hunter2`.
#[tokio::test]
async fn no_error_shows_a_secret() {
    let helper = r#"{"credsStore": "test"}"#;
    for (file, script) in [
        (r#"{"auths": {"r.example": {"auth": "hunter2!"}}}"#, ""),
        (r#"{"auths": {"r.example": {"auth": "aHVudGVyMg=="}}}"#, ""),
        (r#"{"auths": {"r.example": {"auth": ["hunter2"]}}}"#, ""),
        (r#"{"auths": {"r.example": "hunter2"}}"#, ""),
        (r#"{"auths": "hunter2"}"#, ""),
        (r#"{"auths": {"r.example": {"password": "hunter2" "#, ""),
        (r#"{"auths": {"r.example": {"password": hunter2}}}"#, ""),
        (r#"hunter2"#, ""),
        (helper, "echo hunter2; exit 1"),
        (helper, "echo hunter2 >&2; exit 1"),
        (helper, r#"echo '{"Username": "me", "Secret": "hunter2"}'; exit 1"#),
        (helper, r#"printf '{\n"Username": "me",\n"Secret": "hunter2"\n}'; exit 1"#),
        (helper, r#"echo '{"Username": "me", "Secret": "hunter2"}' >&2; exit 1"#),
        (helper, r#"echo '{"Username": "me", "Secret": "hunter2"'"#),
        (helper, r#"echo '{"Username": "me", "Secret": ["hunter2"]}'"#),
        (helper, "echo hunter2"),
    ] {
        let home = Home::new().file(DOCKER, file).helper("test", script);
        let err = home.find("r.example").await.expect_err(file);
        assert!(!format!("{err} {err:?}").contains("unter2"), "{file} {script}: {err:?}");
    }

    let home = Home::new().file(DOCKER, helper).helper("test", "echo cannot keep $(cat) >&2; exit 1");
    let err = home.credentials().store("r.example", &login("me", "hunter2")).await.expect_err("it refuses");
    assert!(!format!("{err} {err:?}").contains("unter2"), "{err:?}");
}
