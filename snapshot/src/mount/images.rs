//! Layers of an overlay that are images: each is mounted first, without a place in the file system.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::CWD,
    io::Errno,
    mount::{MoveMountFlags, move_mount},
};

use super::{Mount, options::Options, place::Place, quoted};

/// The option that names such a layer. It is ours: the kernel does not know it.
pub(super) const OPTION: &str = "lowerimage";
/// The option that says where such a layer is mounted, its owners mapped as those of the whole. It is ours, too.
pub(super) const MOUNTED: &str = "lowermount";

/// Gives `work` the mount, with all layers that are images mounted for as long as it takes. An overlay goes on without these.
pub(super) fn with<T>(one: &Mount, work: impl Fn(&Mount) -> io::Result<T>) -> io::Result<T> {
    let options = Options::parse(&one.options)?;
    if options.images().next().is_none() {
        return work(one);
    }
    let roots = options.images().map(|image| mounted(image, &options)).collect::<io::Result<Vec<_>>>()?;
    let handles = roots.iter().map(|root| format!("/proc/self/fd/{}", root.as_raw_fd()));
    work(&replaced(one, handles.collect())).or_else(|err| match Errno::from_io_error(&err) {
        // Only Linux 6.15 takes layers from mounts without a place.
        Some(Errno::INVAL) => {
            // Short names in one folder: older ones take a page of options.
            let folder = Place::new()?;
            let place =
                |(number, root): (usize, &OwnedFd)| attached(root, folder.inner(&number.to_string())?);
            let places = roots.iter().enumerate().map(place).collect::<io::Result<Vec<_>>>()?;
            work(&replaced(one, places.iter().map(|place| place.path().display().to_string()).collect()))
        }
        _ => Err(err),
    })
}

/// The commands of a shell that mount an image, or an overlay on images: `mount(8)` alone knows neither the layers nor that their data
/// is in files. `None` if it does.
pub(super) fn commands(one: &Mount, target: &Path) -> Option<String> {
    let options = Options::parse(&one.options).ok()?;
    if one.fstype == "erofs" && options.data.iter().any(|(key, _)| *key == "device") {
        return Some(with_loops(one, target));
    }
    options.images().next()?;
    let (mut before, mut after) = (String::new(), String::new());
    let mut layers: Vec<_> = options.layers().map(str::to_owned).collect();
    for value in options.images() {
        let (mut parts, place) = (value.split(':'), super::place::unique());
        let image = erofs(parts.next().expect("there is always one part"), parts);
        let place = place.display().to_string();
        before += &format!("mkdir {0} && {1} && ", quoted(&place), image.command_line(place.as_ref()));
        after += &format!(" && umount -l {0} && rmdir {0}", quoted(&place));
        layers.push(place);
    }
    let mut plain = replaced(one, Vec::new());
    plain.options.retain(|option| !option.starts_with("lowerdir"));
    plain.options.push(format!("lowerdir={}", layers.join(":")));
    Some(before + &plain.command_line(target) + &after)
}

/// The loop devices are gone with the mount, and at once if it fails.
fn with_loops(one: &Mount, target: &Path) -> String {
    let mut files = vec![one.source.to_string_lossy().into_owned()];
    let mut words = Vec::new();
    for option in &one.options {
        match option.strip_prefix("device=") {
            Some(file) => {
                words.push(format!("device=\"$l{}\"", files.len()));
                files.push(file.to_owned());
            }
            None => words.push(quoted(option).into_owned()),
        }
    }
    let made = |(number, file): (usize, &String)| {
        format!("l{number}=$(losetup -rf --show {}) && l=\"$l $l{number}\" && ", quoted(file))
    };
    let loops: String = files.iter().enumerate().map(made).collect();
    let (target, words) = (target.to_string_lossy(), words.join(","));
    // Who gives up a device that is in use keeps it until then.
    let given_up = "trap '[ -z \"$l\" ] || losetup -d $l' EXIT";
    format!("(l=; {given_up}; {loops}mount -t erofs -o {words} \"$l0\" {})", quoted(&target))
}

/// An image, mounted without a place.
fn mounted(value: &str, options: &Options<'_>) -> io::Result<OwnedFd> {
    let mut parts = value.split(':');
    let image = parts.next().expect("there is always one part");
    let root = super::kernel::detached(&erofs(image, parts))?;
    if !options.mapping.is_empty() {
        options.mapping.apply(&root, false)?;
    }
    Ok(root)
}

/// Mounted in a temporary folder.
fn attached(root: &OwnedFd, mut place: Place) -> io::Result<Place> {
    move_mount(root, "", CWD, place.path(), MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    place.mounted(1);
    Ok(place)
}

/// The mount, with the layers at these paths in the place of the images.
fn replaced(one: &Mount, paths: Vec<String>) -> Mount {
    let is_image = |option: &str| option.split_once('=').is_some_and(|(key, _)| key == OPTION);
    let mut options: Vec<_> = one.options.iter().filter(|option| !is_image(option)).cloned().collect();
    options.extend(paths.into_iter().map(|path| format!("{MOUNTED}={path}")));
    Mount { options, ..one.clone() }
}

/// How an EROFS image is mounted whose data is on these devices, each of them a file.
pub(crate) fn erofs<'a>(image: &str, devices: impl IntoIterator<Item = &'a str>) -> Mount {
    let mut options = vec!["ro".to_owned()];
    options.extend(devices.into_iter().map(|device| format!("device={device}")));
    Mount { fstype: "erofs".to_owned(), source: image.into(), options }
}

#[cfg(all(test, feature = "erofs"))]
mod tests {
    use std::fs::File;

    use rustix::fs::{AtFlags, Mode, OFlags, openat, statat};

    use super::*;
    use crate::{
        erofs::{Kind, Meta, Tree, Writer},
        mount::{IdMap, kernel::detached, open_tree},
    };

    /// An overlay on an image with a file of user 5.
    fn overlay(folder: &Path) -> Mount {
        let mut tree = Tree::new();
        let meta = Meta { uid: 5, mode: 0o644, ..Meta::default() };
        tree.put(tree.root(), b"low", meta, Kind::Fifo).expect("the name is good");
        let image = folder.join("image");
        let file = File::create_new(&image).expect("it is new");
        let written = Writer::new(file).expect("there is room").finish(&mut tree, &Default::default());
        written.expect("there is room");
        let mut options = vec![format!("lowerimage={}", image.display())];
        for name in ["upper", "work"] {
            std::fs::create_dir(folder.join(name)).expect("it is new");
            options.push(format!("{name}dir={}", folder.join(name).display()));
        }
        Mount { fstype: "overlay".into(), source: "overlay".into(), options }
    }

    #[test]
    fn an_image_is_a_layer_with_a_place_and_without_one() {
        let dir = tempfile::tempdir().expect("a folder");
        let one = overlay(dir.path());
        let options = Options::parse(&one.options).expect("all are known");
        let image = options.images().next().expect("there is one");

        let root = mounted(image, &options).expect("the kernel takes it");
        let place = attached(&root, Place::new().expect("a folder can be made")).expect("root may mount");
        let by_place = detached(&replaced(&one, vec![place.path().display().to_string()]));
        drop((place, root));

        for tree in [open_tree(&[one]).expect("without"), by_place.expect("with")] {
            statat(&tree, "low", AtFlags::empty()).expect("it is in the image");
            openat(&tree, "high", OFlags::CREATE | OFlags::CLOEXEC, Mode::RWXU).expect("it can be written");
        }
    }

    #[test]
    fn a_shell_mounts_the_image_first() {
        let dir = tempfile::tempdir().expect("a folder");
        let target = dir.path().join("target");
        std::fs::create_dir(&target).expect("it is new");
        // In a namespace of its own, which ends with it.
        let line = overlay(dir.path()).command_line(&target);

        let look = format!("{line} && ls {}", target.display());
        let output = std::process::Command::new("unshare").args(["-m", "sh", "-c", &look]).output();

        let output = output.expect("install util-linux");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "low\n", "{line}: {output:?}");
    }

    #[test]
    fn a_shell_leaves_no_device_behind_where_it_cannot_mount() {
        let dir = tempfile::tempdir().expect("a folder");
        let no_image = dir.path().join("no-image");
        std::fs::write(&no_image, [0; 4096]).expect("there is room");
        let line =
            erofs(no_image.to_str().expect("it is UTF-8"), std::iter::empty()).command_line(dir.path());

        let mounted = std::process::Command::new("sh").args(["-c", &line]).output().expect("a shell starts");

        assert!(!mounted.status.success(), "{line}");
        let devices = std::process::Command::new("losetup").arg("-j").arg(&no_image).output();
        assert_eq!(
            String::from_utf8_lossy(&devices.expect("install mount").stdout),
            "",
            "{line}: {mounted:?}"
        );
    }

    #[test]
    fn owners_in_an_image_are_mapped() {
        let dir = tempfile::tempdir().expect("a folder");
        let map: IdMap = "0:100000:65536".parse().expect("a mapping");

        let tree = open_tree(&[overlay(dir.path()).idmapped(&[map], &[map])]).expect("the kernel can map");

        let low = statat(&tree, "low", AtFlags::empty()).expect("it is in the image");
        assert_eq!((low.st_uid, low.st_gid), (100_005, 100_000));
    }
}
