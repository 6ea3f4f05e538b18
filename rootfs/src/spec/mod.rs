//! From an image's config to an OCI runtime spec.

mod user;

use std::{
    fs::File,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use oci_spec::runtime::{
    Capabilities, Capability, LinuxBuilder, LinuxCapabilitiesBuilder, LinuxDeviceCgroupBuilder,
    LinuxNamespaceType, LinuxResourcesBuilder, Mount, MountBuilder, PosixRlimitBuilder, PosixRlimitType,
    ProcessBuilder, RootBuilder, Spec, get_default_namespaces,
};
use windlass_images::view::Config;

use crate::{Error, Result};

/// Where programs are looked for, if the image does not say.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What Docker and containerd give every container.
const CAPABILITIES: [Capability; 14] = [
    Capability::AuditWrite,
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Mknod,
    Capability::NetBindService,
    Capability::NetRaw,
    Capability::Setfcap,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysChroot,
];

/// What a container has beyond what its image says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Options {
    /// The arguments in the place of the image's `Cmd`; its entrypoint stays. Empty keeps `Cmd`.
    pub args: Vec<String>,
    /// Whether it shares the host's network. By default it has one of its own, with nothing in it.
    pub host_network: bool,
    /// Whether it has a terminal. By default not.
    pub terminal: bool,
}

impl Options {
    /// Sets the arguments.
    pub fn args(self, args: Vec<String>) -> Self {
        Self { args, ..self }
    }

    /// Sets whether it shares the host's network.
    pub fn host_network(self, host_network: bool) -> Self {
        Self { host_network, ..self }
    }

    /// Sets whether it has a terminal.
    pub fn terminal(self, terminal: bool) -> Self {
        Self { terminal, ..self }
    }
}

/// Makes the spec of a container named `id` whose root file system is at `rootfs`, in which users are looked up. Blocks on the disk.
///
/// # Errors
///
/// [`Error::Spec`] if there is nothing to run, or the image's user is not in it.
pub fn generate(config: &Config, rootfs: &Path, id: &str, options: &Options) -> Result<Spec> {
    let image = &config.config;
    let arguments = if options.args.is_empty() { &image.cmd } else { &options.args };
    let args = [image.entrypoint.clone(), arguments.clone()].concat();
    if args.is_empty() {
        let reason = "the image has neither an entrypoint nor a command; say what to run".into();
        return Err(Error::Spec { reason });
    }
    let root: OwnedFd = File::open(rootfs)
        .map_err(|source| Error::Io { op: "open", path: rootfs.to_owned(), source })?
        .into();
    let account = user::look_up(root.as_fd(), &image.user)?;
    let mut env = image.env.clone();
    for (name, value) in [("PATH=", PATH.to_owned()), ("HOME=", format!("HOME={}", account.home))] {
        if !env.iter().any(|variable| variable.starts_with(name)) {
            env.push(value);
        }
    }
    // Runtimes refuse relative folders, and images may have one: it starts at the root, as an empty one does.
    let cwd = Path::new("/").join(&image.working_dir);

    let make = || {
        let capabilities: Capabilities = CAPABILITIES.into_iter().collect();
        let capabilities = LinuxCapabilitiesBuilder::default()
            .bounding(capabilities.clone())
            .effective(capabilities.clone())
            .permitted(capabilities)
            .inheritable(Capabilities::new())
            .ambient(Capabilities::new())
            .build()?;
        let files = PosixRlimitBuilder::default()
            .typ(PosixRlimitType::RlimitNofile)
            .hard(1024u64)
            .soft(1024u64)
            .build()?;
        let process = ProcessBuilder::default()
            .terminal(options.terminal)
            .user(account.user)
            .args(args)
            .env(env)
            .cwd(cwd)
            .capabilities(capabilities)
            .rlimits(vec![files])
            .no_new_privileges(true)
            .build()?;
        // The runtime adds the devices that every container may use.
        let no_device = LinuxDeviceCgroupBuilder::default().allow(false).access("rwm").build()?;
        let namespaces = get_default_namespaces()
            .into_iter()
            .filter(|namespace| !(options.host_network && namespace.typ() == LinuxNamespaceType::Network))
            .collect::<Vec<_>>();
        let linux = LinuxBuilder::default()
            .resources(LinuxResourcesBuilder::default().devices(vec![no_device]).build()?)
            .namespaces(namespaces)
            .cgroups_path(format!("/windlass/{id}"))
            .build()?;
        let mut spec = Spec::default();
        let mut mounts = spec.mounts().clone().unwrap_or_default();
        mounts.push(run_folder()?);
        if options.host_network {
            mounts.extend(host_names()?);
        }
        spec.set_process(Some(process))
            .set_root(Some(RootBuilder::default().path("rootfs").readonly(false).build()?))
            .set_hostname(Some(id.chars().take(63).collect()))
            .set_mounts(Some(mounts))
            .set_linux(Some(linux));
        Ok(spec)
    };
    make().map_err(|error: oci_spec::OciSpecError| Error::Spec { reason: error.to_string() })
}

/// Where services keep what must not outlive them: sockets, pid files.
fn run_folder() -> Result<Mount, oci_spec::OciSpecError> {
    MountBuilder::default()
        .destination("/run")
        .typ("tmpfs")
        .source("tmpfs")
        .options(["nosuid", "strictatime", "mode=755", "size=65536k"].map(str::to_owned))
        .build()
}

/// How the host finds other hosts: a container on its network does so, too.
fn host_names() -> Result<Vec<Mount>, oci_spec::OciSpecError> {
    let options: Vec<String> = ["rbind", "ro"].map(str::to_owned).into();
    ["/etc/resolv.conf", "/etc/hosts"]
        .into_iter()
        .filter(|path| Path::new(path).exists())
        .map(|path| {
            MountBuilder::default()
                .destination(path)
                .typ("bind")
                .source(path)
                .options(options.clone())
                .build()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use oci_spec::image::{Descriptor, MediaType};
    use windlass_content::hash::sha256;

    use super::*;

    fn config(json: &str) -> Config {
        let json =
            format!(r#"{{"os":"linux","architecture":"amd64","rootfs":{{"diff_ids":[]}},"config":{json}}}"#);
        let descriptor = Descriptor::new(MediaType::ImageConfig, json.len() as u64, sha256(json.as_bytes()));
        Config::parse(&descriptor, json.as_bytes()).expect("it is a config")
    }

    fn root() -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a temporary folder can be made");
        std::fs::create_dir(root.path().join("etc")).expect("it can be made");
        std::fs::write(
            root.path().join("etc/passwd"),
            "root:x:0:0::/root:\nredis:x:100:101::/var/lib/redis:/bin/false\n",
        )
        .expect("it can be written");
        std::fs::write(root.path().join("etc/group"), "redis:x:101:\nextra:x:7:redis\n")
            .expect("it can be written");
        root
    }

    #[test]
    fn the_config_says_what_runs_as_whom_and_where() {
        let config = config(
            r#"{"Entrypoint":["/entry"],"Cmd":["serve"],"Env":["A=1"],"WorkingDir":"/data","User":"redis"}"#,
        );

        let spec = generate(&config, root().path(), "mine", &Options::default()).expect("it is complete");

        let process = spec.process().as_ref().expect("there is a process");
        assert_eq!(process.args().as_deref(), Some(&["/entry".to_owned(), "serve".to_owned()][..]));
        assert_eq!(process.cwd(), Path::new("/data"));
        assert_eq!((process.user().uid(), process.user().gid()), (100, 101));
        assert_eq!(process.user().additional_gids().as_deref(), Some(&[101, 7][..]));
        let env = process.env().as_ref().expect("there is an environment");
        assert_eq!(env[..], ["A=1".to_owned(), PATH.to_owned(), "HOME=/var/lib/redis".to_owned()]);
        assert_eq!(spec.hostname().as_deref(), Some("mine"));
    }

    #[test]
    fn a_command_takes_the_place_of_cmd_and_the_host_network_has_no_namespace() {
        let config = config(r#"{"Entrypoint":["/entry"],"Cmd":["serve"]}"#);
        let options = Options::default().args(vec!["--help".into()]).host_network(true);

        let spec = generate(&config, root().path(), "mine", &options).expect("it is complete");

        let args = spec.process().as_ref().and_then(|process| process.args().clone());
        assert_eq!(args, Some(vec!["/entry".to_owned(), "--help".to_owned()]));
        let linux = spec.linux().as_ref().expect("there is a Linux part");
        let namespaces = linux.namespaces().as_ref().expect("there are namespaces");
        assert!(namespaces.iter().all(|namespace| namespace.typ() != LinuxNamespaceType::Network));
    }

    #[test]
    fn an_image_that_runs_nothing_says_so() {
        let err = generate(&config("null"), root().path(), "mine", &Options::default())
            .expect_err("nothing to run");
        assert!(err.to_string().contains("say what to run"), "{err}");
    }
}
