//! What the command line may say.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand};
use oci_spec::image::Digest;
use windlass::{Platforms, Reference, images::Platform, remotes::local::Source};

use crate::{
    settings::Settings,
    values::{Compressed, bytes, image},
};

/// Pull, store, unpack and run OCI and Docker images, without a daemon.
#[derive(Debug, Parser)]
#[command(name = "dist", version = env!("WINDLASS_VERSION"))]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) settings: Settings,

    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    #[command(flatten)]
    Local(LocalCommand),
    #[command(flatten)]
    Remote(RemoteCommand),
}

/// What is about registries alone, and needs no folder.
#[derive(Debug, Subcommand)]
pub(crate) enum RemoteCommand {
    /// Copy an image, or an index with all its images, to a registry, without storing it here.
    Copy(CopyArgs),
    /// List the tags of a repository.
    Tags {
        /// Such as `redis` or `ghcr.io/owner/name`.
        repository: Reference,
    },
    /// Remember who to be at a registry, once it has agreed.
    Login(LoginArgs),
    /// Forget who to be at a registry.
    Logout {
        /// Such as `ghcr.io` or `registry.example:5000`.
        #[arg(default_value = "docker.io")]
        host: String,
    },
}

/// What works in the folder that `--root` names.
#[derive(Debug, Subcommand)]
pub(crate) enum LocalCommand {
    /// Fetch an image, unpack it while it arrives, and record its name.
    Pull(PullArgs),
    /// Fetch all content of an image; unpack nothing.
    Fetch(FetchArgs),
    /// Send an image that is here to a registry.
    Push(PushArgs),
    /// Print what a name stands for: a manifest by tag, any blob by digest.
    FetchObject {
        /// Such as `redis:latest` or `redis@sha256:…`.
        reference: Reference,
    },
    /// List the images that are here, or do something with them.
    #[command(args_conflicts_with_subcommands = true, after_help = DIGESTS)]
    Images {
        /// One JSON object per line.
        #[arg(long)]
        json: bool,
        #[command(subcommand)]
        command: Option<ImagesCommand>,
    },
    /// Read every blob, and print those that are damaged.
    Verify {
        /// Move them out of the way, so that the next pull fetches them again.
        #[arg(long)]
        quarantine: bool,
    },
    /// Remove what no image, lease or container needs: blobs, and snapshots of the kind that `--snapshotter` names.
    Gc(GcArgs),
    /// Say what takes the space: blobs, and snapshots of the kind that `--snapshotter` names.
    Du {
        /// One JSON object per line.
        #[arg(long)]
        json: bool,
    },
    /// List what is held against garbage collection, and by whom.
    #[command(args_conflicts_with_subcommands = true)]
    Leases {
        /// One JSON object per line.
        #[arg(long)]
        json: bool,
        #[command(subcommand)]
        command: Option<LeasesCommand>,
    },
    /// Run a command in a new container of an image that was pulled.
    Run(RunArgs),
    /// List the containers that are kept, in use, or were left by a process that died.
    #[command(visible_alias = "ps", args_conflicts_with_subcommands = true)]
    Containers {
        /// One JSON object per line.
        #[arg(long)]
        json: bool,
        #[command(subcommand)]
        command: Option<ContainersCommand>,
    },
    /// Make an image of what a container has changed, and print its digest. With $SOURCE_DATE_EPOCH the same changes give the
    /// same image.
    Commit(CommitArgs),
    /// Write what a container has changed as a layer, on stdout.
    Diff {
        /// The container, or another active snapshot.
        key: String,
        /// How the layer is compressed.
        #[arg(long, value_enum, default_value = "none")]
        compression: Compressed,
    },
    /// Store a blob that comes on stdin.
    Ingest(IngestArgs),
    /// List ingests that are not complete.
    Active {
        /// Only their keys.
        #[arg(short, long)]
        quiet: bool,
    },
    /// List the blobs that are here.
    List {
        /// Only their digests.
        #[arg(short, long)]
        quiet: bool,
    },
    /// Print where blobs are on the disk.
    Path {
        /// Do not check that they are there.
        #[arg(short = 'n', long)]
        no_check: bool,
        /// The blobs.
        #[arg(required = true)]
        digests: Vec<Digest>,
    },
    /// Print a blob.
    Get {
        /// The blob.
        digest: Digest,
    },
    /// Delete blobs, and print which.
    Delete {
        /// The blobs.
        #[arg(required = true)]
        digests: Vec<Digest>,
    },
    /// Apply a layer that comes on stdin (tar, tar.gz or tar.zst) to a folder.
    Apply {
        /// The folder. It must exist.
        dir: PathBuf,
    },
    /// Unpack images, and mount what was unpacked.
    #[command(subcommand)]
    Rootfs(RootfsCommand),
}

#[derive(Debug, Subcommand)]
pub(crate) enum RootfsCommand {
    /// Unpack the layers of a manifest that was fetched, and print the ChainID.
    Unpack {
        /// The manifest.
        manifest: Digest,
    },
    /// Prepare a writable root file system, and print the commands that mount it.
    Prepare {
        /// What `rootfs unpack` printed.
        chain_id: Digest,
        /// A name for the new snapshot.
        key: String,
        /// Where the printed commands mount it.
        #[arg(long, default_value = "TARGET")]
        target: PathBuf,
    },
}

/// What commands say that take images by name or digest.
const DIGESTS: &str = "An image is called by its name, or by its digest: as much of `sha256:0123…` as only it has, or of the \
    digits alone at least 12.";

#[derive(Debug, Subcommand)]
pub(crate) enum ImagesCommand {
    /// Take names off the list; `gc` then frees the space.
    Rm {
        /// The images. A digest that several names stand for removes none of them.
        #[arg(required = true, value_name = "IMAGE", value_parser = image)]
        names: Vec<String>,
    },
    /// Give an image another name, too.
    Tag {
        /// The image, by name or digest.
        #[arg(value_name = "IMAGE", value_parser = image)]
        name: String,
        /// Its other name.
        new: Reference,
    },
    /// Note labels on an image here, such as those that `gc --keep-label` keeps. Its content stays as it is.
    Label {
        /// The image, by name or digest.
        #[arg(value_name = "IMAGE", value_parser = image)]
        name: String,
        /// What to note: `KEY=VALUE`, or only `KEY`.
        #[arg(value_name = "LABEL", required_unless_present = "rm")]
        labels: Vec<String>,
        /// The key of a label to remove. May be given again.
        #[arg(long, value_name = "KEY")]
        rm: Vec<String>,
    },
    /// Print what is known of an image, as JSON.
    Inspect {
        /// The image, by name or digest.
        #[arg(value_name = "IMAGE", value_parser = image)]
        name: String,
        #[command(flatten)]
        platform: PlatformArgs,
    },
    /// Say what of images is here, for each platform; fail if of one of them no platform is whole.
    Check {
        /// The images, by name or digest [default: all].
        #[arg(value_name = "IMAGE", value_parser = image)]
        names: Vec<String>,
    },
    /// Take in images from an archive: an OCI layout in a tar, or one of `docker save`, plain or compressed.
    Import(ImportArgs),
    /// Write images as an archive that docker, podman and skopeo read.
    Export(ExportArgs),
}

#[derive(Debug, Subcommand)]
pub(crate) enum ContainersCommand {
    /// Remove containers, with what they wrote. One whose process has died is ended first, if it still runs.
    Rm {
        /// The containers.
        #[arg(required = true)]
        ids: Vec<String>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct CommitArgs {
    /// The container, or another active snapshot.
    pub(crate) key: String,
    /// The image's name.
    pub(crate) name: Reference,
    /// Who made it [default: who made the base image].
    #[arg(short, long)]
    pub(crate) author: Option<String>,
    /// What to say of the change in the image's history.
    #[arg(short, long)]
    pub(crate) message: Option<String>,
    /// The image that the snapshot is on top of [default: the one that it was made of].
    #[arg(long, value_name = "IMAGE", value_parser = image)]
    pub(crate) base: Option<String>,
    /// How the layer is compressed.
    #[arg(long, value_enum, default_value = "gzip")]
    pub(crate) compression: Compressed,
}

#[derive(Debug, Subcommand)]
pub(crate) enum LeasesCommand {
    /// Remove leases that no running process has.
    Rm {
        /// The leases.
        #[arg(required = true)]
        ids: Vec<String>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// A file, `-` for stdin, the folder of an OCI layout, or as `pull` takes it: `docker-archive:FILE:IMAGE`.
    pub(crate) file: String,
    /// Unpack them, too.
    #[arg(long)]
    pub(crate) unpack: bool,
    /// Only images of this name, tag or digest. May be given again.
    #[arg(long)]
    pub(crate) name: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// The file to write; `-` for stdout.
    pub(crate) file: String,
    /// The images, by name or digest.
    #[arg(required = true, value_name = "IMAGE", value_parser = image)]
    pub(crate) names: Vec<String>,
    /// Only the image for this platform, of an index with several [default: all that are here].
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    pub(crate) platform: Option<Platform>,
}

#[derive(Debug, Args)]
pub(crate) struct GcArgs {
    /// Remove nothing, and print what would be.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// First drop all names but the N newest of each repository.
    #[arg(long, value_name = "N")]
    pub(crate) keep_newest: Option<usize>,
    /// First drop names that were not used for this long, such as `30d`; what `--keep-newest` keeps stays.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(crate) unused_since: Option<Duration>,
    /// Drop no name with this label, `KEY` or `KEY=VALUE`. May be given again.
    #[arg(long, value_name = "LABEL")]
    pub(crate) keep_label: Vec<String>,
    /// Drop the least recently used names until the blobs of the others have no more bytes than this, such as `20GiB`.
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    pub(crate) max_size: Option<u64>,
    /// Print the report as one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PullArgs {
    #[command(flatten)]
    pub(crate) fetch: FetchArgs,
    /// Do not keep layers as blobs once they are unpacked: half of the disk. Whoever needs one fetches it again.
    #[arg(long)]
    pub(crate) discard_layers: bool,
}

#[derive(Debug, Args)]
pub(crate) struct FetchArgs {
    /// Such as `redis`, `ghcr.io/owner/name:tag`, `127.0.0.1:5000/app@sha256:…`, or a local image: `oci:PATH:TAG`,
    /// `oci-archive:FILE`, `docker-archive:FILE`.
    pub(crate) source: Source,
    #[command(flatten)]
    pub(crate) platforms: PlatformArgs,
    /// Fetch for all platforms; the host's is unpacked.
    #[arg(long, conflicts_with = "platform")]
    all_platforms: bool,
    /// Print events on stdout, one JSON object per line.
    #[arg(long)]
    pub(crate) json: bool,
}

impl FetchArgs {
    pub(crate) fn platforms(&self) -> Platforms {
        match self.all_platforms {
            true => Platforms::All,
            false => self.platforms.platforms(),
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct PushArgs {
    /// An image that is here, by name or digest.
    #[arg(value_name = "IMAGE", value_parser = image)]
    pub(crate) name: String,
    /// Where to [default: its own name].
    pub(crate) to: Option<Reference>,
    /// Send only this platform's image of an index.
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    pub(crate) platform: Option<Platform>,
    #[command(flatten)]
    pub(crate) upload: UploadArgs,
}

#[derive(Debug, Args)]
pub(crate) struct CopyArgs {
    /// In a registry, or a local image: `oci:PATH:TAG`, `oci-archive:FILE`, `docker-archive:FILE`.
    pub(crate) from: Source,
    /// Where to, in a registry.
    pub(crate) to: Reference,
    #[command(flatten)]
    pub(crate) upload: UploadArgs,
}

#[derive(Debug, Args)]
pub(crate) struct UploadArgs {
    /// Another repository of the target registry that may have blobs already, such as `library/debian`.
    #[arg(long, value_name = "REPOSITORY")]
    pub(crate) mount_from: Vec<String>,
    /// Print events on stdout, one JSON object per line.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct LoginArgs {
    /// Such as `ghcr.io` or `registry.example:5000`.
    #[arg(default_value = "docker.io")]
    pub(crate) host: String,
    /// The user [default: asked for].
    #[arg(short, long)]
    pub(crate) username: Option<String>,
    /// Read the password from stdin, instead of asking for it.
    #[arg(long)]
    pub(crate) password_stdin: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PlatformArgs {
    /// Another platform than this machine's.
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    platform: Option<Platform>,
}

impl PlatformArgs {
    pub(crate) fn platforms(&self) -> Platforms {
        self.platform.clone().map_or(Platforms::Host, Platforms::One)
    }
}

#[derive(Debug, Args)]
pub(crate) struct IngestArgs {
    /// A name for the ingest: the same name again resumes it.
    pub(crate) key: String,
    /// What the bytes must hash to.
    #[arg(long, value_name = "DIGEST")]
    pub(crate) expected_digest: Digest,
    /// How many bytes there must be.
    #[arg(long, value_name = "BYTES")]
    pub(crate) expected_size: u64,
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// Remove the container's file system when it ends, instead of keeping it for `commit` or `diff`.
    #[arg(long)]
    pub(crate) rm: bool,
    /// A name for the container [default: made up].
    #[arg(long, visible_alias = "name")]
    pub(crate) id: Option<String>,
    /// The OCI runtime: a program, or `embedded` [default: the first of runc, crun, youki that is installed].
    #[arg(long, value_name = "PATH")]
    pub(crate) runtime: Option<PathBuf>,
    /// Share the host's network.
    #[arg(long)]
    pub(crate) host_network: bool,
    #[command(flatten)]
    pub(crate) platforms: PlatformArgs,
    /// The image, by name or digest. It is pulled if nothing of that name is here.
    #[arg(value_name = "IMAGE", value_parser = image)]
    pub(crate) image: String,
    /// What to run instead of the image's command.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) command: Vec<String>,
}
