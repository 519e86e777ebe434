//! File systems of their own for tests: full, frozen, small. They need root.

use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

/// A mounted file system, unmounted when dropped.
pub struct Mount {
    dir: TempDir,
    mounted: bool,
    frozen: bool,
}

fn run(program: &str, args: &[&str]) {
    let output = Command::new(program)
        .args(args)
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(
        output.status.success(),
        "{program} {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Whether this process may mount. Without that a test passes without having tested, except in CI, where it fails.
fn may_mount(test: &str) -> bool {
    if rustix::process::geteuid().is_root() {
        return true;
    }
    assert!(
        std::env::var("CI").as_deref() != Ok("true"),
        "{test} needs root, and CI may not skip it"
    );
    eprintln!("{test}: skipped, mounting needs root");
    false
}

/// A device that is not mounted.
pub struct Image(Mount);

impl Image {
    /// Mounts it.
    pub fn mount(self) -> Mount {
        self.0.mount_image("loop")
    }
}

impl Mount {
    /// A file system in memory of this size; `None` when this process may not mount.
    pub fn tmpfs(test: &str, size_bytes: u64) -> Option<Self> {
        may_mount(test).then(|| {
            let mut this = Self::empty();
            run(
                "mount",
                &[
                    "-t",
                    "tmpfs",
                    "-o",
                    &format!("size={size_bytes}"),
                    "tmpfs",
                    &this.point(),
                ],
            );
            this.mounted = true;
            this
        })
    }

    /// An ext4 of this size on a loop device, which commits its journal only when it is asked to; `None` when this process
    /// may not mount.
    pub fn ext4(test: &str, size_bytes: u64) -> Option<Self> {
        Self::made(test, size_bytes, &["mkfs.ext4", "-q"], "loop,commit=3600")
    }

    /// An XFS with reflinks of this size on a loop device; `None` when this process may not mount.
    pub fn xfs(test: &str, size_bytes: u64) -> Option<Self> {
        let make = ["mkfs.xfs", "-q", "-f", "-m", "reflink=1"];
        Self::made(test, size_bytes, &make, "loop")
    }

    /// A btrfs of this size on a loop device; `None` when this process may not mount.
    pub fn btrfs(test: &str, size_bytes: u64) -> Option<Self> {
        Self::made(test, size_bytes, &["mkfs.btrfs", "-q", "-f"], "loop")
    }

    fn made(test: &str, size_bytes: u64, make: &[&str], options: &'static str) -> Option<Self> {
        may_mount(test).then(|| {
            let this = Self::empty();
            let image = std::fs::File::create(this.image()).unwrap();
            image.set_len(size_bytes).unwrap();
            run(make[0], &[&make[1..], &[this.image().as_str()]].concat());
            this.mount_image(options)
        })
    }

    /// The file system as it would come up after a power cut now: a copy of its device, mounted.
    pub fn copy(&self) -> Self {
        let Image(copy) = self.image_now();
        copy.mount_image("loop,commit=3600")
    }

    /// The device as a power cut would leave it now. XFS and btrfs mount it once this file system is gone: they know devices by
    /// identifiers, which the copy has too.
    pub fn image_now(&self) -> Image {
        let copy = Self::empty();
        // Holes stay holes: only what the device was sent is copied.
        run("cp", &["--sparse=always", &self.image(), &copy.image()]);
        Image(copy)
    }

    fn empty() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("mnt")).unwrap();
        Self {
            dir,
            mounted: false,
            frozen: false,
        }
    }

    fn mount_image(mut self, options: &str) -> Self {
        run("mount", &["-o", options, &self.image(), &self.point()]);
        self.mounted = true;
        self
    }

    fn image(&self) -> String {
        self.dir.path().join("image").to_str().unwrap().into()
    }

    /// The root of the file system.
    pub fn root(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    fn point(&self) -> String {
        self.dir.path().join("mnt").to_str().unwrap().into()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("mnt").join(name)
    }

    /// From here on writes wait in the kernel, and nothing can cancel them.
    pub fn freeze(&mut self) {
        run("fsfreeze", &["-f", &self.point()]);
        self.frozen = true;
    }

    pub fn thaw(&mut self) {
        if std::mem::take(&mut self.frozen) {
            run("fsfreeze", &["-u", &self.point()]);
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        self.thaw();
        if self.mounted {
            // Lazily: a failing test may leave files open.
            run("umount", &["-l", &self.point()]);
        }
    }
}
