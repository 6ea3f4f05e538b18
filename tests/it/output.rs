//! What is printed where: data on stdout, everything else on stderr, and no complaint when nobody reads on.

use std::io;

use windlass_testkit::{ImageBuilder, Registry};

use crate::support::{Dist, layer};

async fn pulled() -> (Registry, Dist, String) {
    let (registry, dist) = (Registry::start().await, Dist::new());
    registry.push(&ImageBuilder::new().layer(layer("file")).build(), "app", "1");
    let name = format!("{}/app:1", registry.host());
    dist.ok(&["pull", &name]);
    (registry, dist, name)
}

#[tokio::test(flavor = "multi_thread")]
async fn data_goes_to_stdout_and_everything_else_to_stderr() {
    let (_registry, dist, name) = pulled().await;
    for (arguments, heading) in [
        (&["images"][..], "REF "),
        (&["images", "check"], "REF "),
        (&["list"], "DIGEST "),
        (&["active"], "KEY "),
        (&["leases"], "ID "),
        (&["du"], "REF "),
        (&["gc", "--dry-run"], "TYPE "),
    ] {
        let ran = dist.run(arguments);
        assert_eq!(ran.code, Some(0), "{arguments:?}: {}", ran.stderr);
        assert!(ran.stdout.starts_with(heading), "{arguments:?}: {}", ran.stdout);
        let said = if arguments[0] == "gc" { "would free 0 B\n" } else { "" };
        assert_eq!(ran.stderr, said, "{arguments:?}");
        assert!(ran.stdout.lines().all(|line| line == line.trim_end()), "{arguments:?}");
    }
    for arguments in [&["pull", &name][..], &["fetch", &name], &["verify"]] {
        let ran = dist.run(arguments);
        assert_eq!((ran.code, &*ran.stdout), (Some(0), ""), "{arguments:?}");
        assert_ne!(ran.stderr, "", "{arguments:?}");
    }
    for arguments in
        [&["images", "--json"][..], &["du", "--json"], &["gc", "--json"], &["pull", "--json", &name]]
    {
        let ran = dist.run(arguments);
        assert_eq!((ran.code, &*ran.stderr), (Some(0), ""), "{arguments:?}");
        assert!(!dist.json_lines(arguments).is_empty(), "{arguments:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_goes_away_is_no_failure() {
    let (_registry, dist, name) = pulled().await;
    for arguments in [
        &["images"][..],
        &["images", "--json"],
        &["images", "inspect", &name],
        &["images", "export", "-", &name],
        &["du"],
        &["gc", "--json"],
        &["pull", "--json", &name],
        &["list"],
        &["--help"],
    ] {
        let (reader, pipe) = io::pipe().expect("a pipe can be made");
        drop(reader);

        let output = dist.command(arguments).stdout(pipe).output().expect("dist starts");

        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{arguments:?}");
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
    }
}

/// Every command explains itself and its arguments.
#[test]
fn help_has_a_sentence_for_everything() {
    let dist = Dist::new();
    let mut open = vec![Vec::<String>::new()];
    let mut seen = 0;
    while let Some(command) = open.pop() {
        let mut arguments: Vec<&str> = command.iter().map(String::as_str).collect();
        arguments.push("--help");
        let help = dist.command(&arguments).env("COLUMNS", "100").output().expect("dist starts").stdout;
        let help = String::from_utf8(help).expect("it is text");
        seen += 1;
        assert!(help.lines().next().is_some_and(|line| line.contains(' ')), "{arguments:?}: {help}");
        let mut section = "";
        for line in help.lines() {
            match line.strip_suffix(':') {
                Some(heading) if !line.starts_with(' ') => {
                    section = if heading == "Commands" { "c" } else { "" }
                }
                _ => {}
            }
            assert!(line.chars().count() <= 100, "{arguments:?}: {line}");
            let Some(entry) = line.strip_prefix("  ").filter(|it| section == "c" && !it.starts_with(' '))
            else {
                continue;
            };
            let (name, about) = entry.split_once(' ').unwrap_or((entry, ""));
            assert!(!about.trim().is_empty(), "{arguments:?} {name}");
            if name != "help" {
                open.push([command.clone(), vec![name.to_owned()]].concat());
            }
        }
    }
    assert!(seen > 25, "{seen} commands");
}
