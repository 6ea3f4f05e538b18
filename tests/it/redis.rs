//! The main job: redis, from Debian packages, pulled from a real registry, run, and asked for a PONG.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use windlass_testkit::{Image, ImageBuilder, Layer, RealRegistry};

use crate::support::Dist;

/// Debian's redis-server on its base system, and a layer with its configuration.
fn redis() -> Image {
    let tar = Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/redis.tar");
    let tar = std::fs::read(&tar)
        .unwrap_or_else(|error| panic!("{}: {error}; make it with tests/redis-rootfs.sh", tar.display()));
    ImageBuilder::new()
        .layer(Layer::from_tar(&tar))
        .layer(
            Layer::new()
                .file("etc/redis/container.conf", 0o644, b"save \"\"\nappendonly no\n")
                .dir("data", 0o777),
        )
        .entrypoint(&["redis-server"])
        .cmd(&["/etc/redis/container.conf"])
        .env("PATH", "/usr/bin:/bin")
        .user("redis")
        .working_dir("/data")
        .build()
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr()).expect("a port is free").port()
}

/// What the server answers to `PING`, asked until it listens.
fn ping(port: u16, server: &mut Child) -> String {
    let started = Instant::now();
    loop {
        if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) {
            stream.write_all(b"PING\r\n").expect("it listens");
            let mut answer = [0; 7];
            stream.read_exact(&mut answer).expect("it answers");
            return String::from_utf8_lossy(&answer).into_owned();
        }
        assert!(server.try_wait().expect("it can be waited for").is_none(), "redis ended");
        assert!(started.elapsed() < Duration::from_secs(30), "redis does not listen");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_is_pulled_and_answers_ping_under_runc_and_without_a_runtime() {
    let registry = RealRegistry::start().await;
    registry.push(&redis(), "library/redis", "latest").await;
    let name = format!("{}/library/redis:latest", registry.host());
    let dist = Dist::new();
    dist.ok(&["pull", &name]);

    for runtime in ["runc", "embedded"] {
        let port = free_port();
        let port_text = port.to_string();
        let arguments = ["run", "--rm", "--runtime", runtime, "--host-network", &name];
        let server_arguments = ["/etc/redis/container.conf", "--port", &port_text];
        let mut server = dist
            .command(&[&arguments[..], &server_arguments[..]].concat())
            .stdout(Stdio::null())
            .spawn()
            .expect("dist starts");

        let answer = ping(port, &mut server);
        // Its user ends it as a terminal would: the signal is passed on, and so is the exit code.
        let pid = rustix::process::Pid::from_child(&server);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it runs");
        let code = server.wait().expect("it ends").code();

        assert_eq!(answer, "+PONG\r\n", "{runtime}");
        assert_eq!(code, Some(0), "{runtime}: redis ends well on SIGTERM");
    }
    let version = dist.ok(&["run", "--rm", &name, "--version"]);
    assert!(version.contains("Redis server"), "{version}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_exit_code_of_a_container_is_passed_on_and_nothing_is_left() {
    let registry = RealRegistry::start().await;
    let shell = ImageBuilder::new()
        .layer(
            Layer::new().dir("bin", 0o755).file(
                "bin/busybox",
                0o755,
                &std::fs::read(windlass_testkit::require("busybox", "busybox-static"))
                    .expect("busybox can be read"),
            ),
        )
        .entrypoint(&["/bin/busybox"])
        .cmd(&["true"])
        .build();
    registry.push(&shell, "shell", "latest").await;
    let name = format!("{}/shell:latest", registry.host());
    let dist = Dist::new();

    // It is not here yet: run pulls it.
    let code = dist.run(&["run", "--rm", &name, "sh", "-c", "exit 7"]).code;

    assert_eq!(code, Some(7));
    let mounts = std::fs::read_to_string("/proc/self/mounts").expect("the mounts can be read");
    assert!(!mounts.contains(&*dist.root().to_string_lossy()), "nothing is mounted any more:\n{mounts}");
}
