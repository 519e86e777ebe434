//! The forms of block device, and which of them this kernel and this process can make.
//!
//! A probe opens the control file that the form needs and closes it again; it changes nothing. What is missing is
//! named together with its remedy.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::ErrorKind;
use std::str::FromStr;

use nvmf_io::sys::nbd::NbdNetlink;
use rustix::thread::CapabilitySet;

/// How a namespace is shown to the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BlockForm {
    /// The best form that is available here.
    Auto,
    /// `/dev/ublkbN`, multi-queue, survives a crash of the daemon.
    Ublk,
    /// A file on FUSE with a loop device on top; survives a crash of the daemon on Linux 6.9 and newer.
    Fuse,
    /// `/dev/nbdN` of the kernel's nbd driver.
    Nbd,
    /// An NBD server on a unix socket, for QEMU and other NBD clients; no block device.
    NbdSocket,
    /// No device; the namespace is reached through the library only.
    None,
}

/// A form that cannot be used here, with cause and remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{form} is not available: {cause}; {remedy}")]
pub struct FormUnavailable {
    /// The form that was probed.
    pub form: BlockForm,
    /// What is missing.
    pub cause: String,
    /// What to do about it.
    pub remedy: String,
}

/// No form of block device can be made here; holds the reason for each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoForm(pub Vec<FormUnavailable>);

impl std::error::Error for NoForm {}

impl fmt::Display for NoForm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.len() != 1 {
            write!(f, "no form of block device is available here; ")?;
        }
        for (index, reason) in self.0.iter().enumerate() {
            let parted = if index > 0 { "; " } else { "" };
            write!(f, "{parted}{reason}")?;
        }
        write!(f, "; --block none needs nothing of this")
    }
}

/// FUSE_NOTIFY_RESEND, without which requests in flight are lost with the process that read them.
const FUSE_RESEND_SINCE: (u32, u32) = (6, 9);

impl BlockForm {
    /// The forms that give a block device, best first: ublk has one queue per shard and no file system between; FUSE
    /// with loop has as many and survives a crash on newer kernels; nbd has one queue, copies through a socket, and needs
    /// seconds to go on after a crash.
    pub const PREFERENCE: [BlockForm; 3] = [BlockForm::Ublk, BlockForm::Fuse, BlockForm::Nbd];

    /// The word used on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            BlockForm::Auto => "auto",
            BlockForm::Ublk => "ublk",
            BlockForm::Fuse => "fuse",
            BlockForm::Nbd => "nbd",
            BlockForm::NbdSocket => "nbd-socket",
            BlockForm::None => "none",
        }
    }

    /// `Auto` becomes the best available form; any other form is checked.
    pub fn resolve(self) -> Result<BlockForm, NoForm> {
        let candidates: &[BlockForm] = match self {
            BlockForm::Auto => &Self::PREFERENCE,
            ref one => std::slice::from_ref(one),
        };
        let mut reasons = Vec::new();
        for &form in candidates {
            match form.available() {
                Ok(()) => return Ok(form),
                Err(reason) => reasons.push(reason),
            }
        }
        Err(NoForm(reasons))
    }

    /// Whether this kernel and this process can make the form.
    pub fn available(self) -> Result<(), FormUnavailable> {
        match self {
            BlockForm::Auto => self.resolve().map(drop).map_err(|none| FormUnavailable {
                form: self,
                cause: none.to_string(),
                remedy: "remedy one of them".into(),
            }),
            BlockForm::Ublk => self.admin().and_then(|()| {
                self.control_file(
                    "/dev/ublk-control",
                    "load the driver with `modprobe ublk_drv` (Linux 6.0 or newer with CONFIG_BLK_DEV_UBLK)",
                )
            }),
            BlockForm::Fuse => self.admin().and_then(|()| {
                self.control_file("/dev/fuse", "load the driver with `modprobe fuse` (CONFIG_FUSE_FS)")?;
                self.control_file("/dev/loop-control", "load the driver with `modprobe loop` (CONFIG_BLK_DEV_LOOP)")
            }),
            BlockForm::Nbd => self.admin().and_then(|()| self.nbd_driver()),
            BlockForm::NbdSocket | BlockForm::None => Ok(()),
        }
    }

    /// Whether I/O of the device's users survives the death of the process that serves it, given a keeper that holds
    /// the file descriptors.
    pub fn survives_crash(self) -> Result<(), String> {
        match self {
            BlockForm::Ublk | BlockForm::Nbd => Ok(()),
            BlockForm::Fuse => {
                let (major, minor) = kernel_release();
                if (major, minor) >= FUSE_RESEND_SINCE {
                    return Ok(());
                }
                Err(format!(
                    "Linux {major}.{minor} cannot send FUSE requests again (6.9 and newer can): when the daemon dies, \
                     I/O on its loop devices fails"
                ))
            }
            // Up to its clients: those that connect again and repeat what was not answered, as QEMU does when it is told
            // to, lose nothing.
            BlockForm::NbdSocket => Ok(()),
            BlockForm::Auto | BlockForm::None => Err("there is no device".into()),
        }
    }

    fn unavailable(self, cause: impl Into<String>, remedy: impl Into<String>) -> FormUnavailable {
        FormUnavailable {
            form: self,
            cause: cause.into(),
            remedy: remedy.into(),
        }
    }

    fn admin(self) -> Result<(), FormUnavailable> {
        let allowed = rustix::thread::capabilities(None)
            .is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN));
        if allowed {
            return Ok(());
        }
        Err(self.unavailable(
            "making a block device needs CAP_SYS_ADMIN, which this process lacks",
            "run as root or grant the capability",
        ))
    }

    fn nbd_driver(self) -> Result<(), FormUnavailable> {
        match NbdNetlink::open() {
            Ok(_) => Ok(()),
            Err(e) if e.kind() == ErrorKind::NotFound => Err(self.unavailable(
                "the kernel's nbd driver does not answer",
                "load it with `modprobe nbd` (CONFIG_BLK_DEV_NBD), and in a container share the host's network namespace",
            )),
            Err(e) => Err(self.unavailable(
                format!("the kernel's nbd driver cannot be asked: {e}"),
                "allow netlink sockets",
            )),
        }
    }

    fn control_file(self, path: &str, remedy: &str) -> Result<(), FormUnavailable> {
        match OpenOptions::new().read(true).write(true).open(path) {
            Ok(_) => Ok(()),
            Err(e) if e.kind() == ErrorKind::PermissionDenied => Err(self.unavailable(
                format!("{path} cannot be opened: {e}"),
                "run as root, and in a container allow the device in its device list",
            )),
            Err(e) => Err(self.unavailable(format!("{path} cannot be opened: {e}"), remedy)),
        }
    }
}

/// Major and minor of the running kernel; (0, 0) when they cannot be read, which fails every "at least" test.
fn kernel_release() -> (u32, u32) {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|n| n.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

impl fmt::Display for BlockForm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for BlockForm {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        use BlockForm::*;
        [Auto, Ublk, Nbd, Fuse, NbdSocket, None].into_iter().find(|form| form.name() == word).ok_or_else(|| {
            format!("unknown form of block device '{word}': give auto, ublk, nbd, fuse, nbd-socket or none")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_round_trip() {
        for form in [
            BlockForm::Auto,
            BlockForm::Ublk,
            BlockForm::Fuse,
            BlockForm::Nbd,
            BlockForm::NbdSocket,
            BlockForm::None,
        ] {
            assert_eq!(form.name().parse(), Ok(form));
        }
        assert!("usb".parse::<BlockForm>().unwrap_err().contains("'usb'"));
    }

    #[test]
    fn a_missing_driver_is_named_with_its_remedy() {
        let error = BlockForm::Ublk
            .control_file("/dev/there-is-no-such-file", "load it")
            .unwrap_err();
        let text = error.to_string();
        assert!(text.contains("ublk is not available"), "{text}");
        assert!(text.contains("/dev/there-is-no-such-file"), "{text}");
        assert!(text.ends_with("load it"), "{text}");
    }

    #[test]
    fn auto_is_the_first_available_form_of_the_preference() {
        let expected = BlockForm::PREFERENCE
            .into_iter()
            .find(|form| form.available().is_ok());
        match BlockForm::Auto.resolve() {
            Ok(form) => assert_eq!(Some(form), expected),
            Err(NoForm(reasons)) => {
                assert_eq!(expected, None);
                assert_eq!(reasons.len(), BlockForm::PREFERENCE.len());
            }
        }
    }

    #[test]
    fn what_needs_nothing_of_the_kernel_is_always_possible() {
        for form in [BlockForm::None, BlockForm::NbdSocket] {
            assert_eq!(form.resolve(), Ok(form));
        }
    }

    #[test]
    fn a_kernel_without_nbd_is_told_what_to_load() {
        match BlockForm::Nbd.nbd_driver() {
            Ok(()) => assert!(std::path::Path::new("/sys/module/nbd").exists()),
            Err(error) => {
                let text = error.to_string();
                assert!(text.starts_with("nbd is not available"), "{text}");
                assert!(text.contains("modprobe nbd"), "{text}");
            }
        }
    }

    #[test]
    fn the_running_kernel_has_a_release() {
        assert!(kernel_release() > (4, 0));
    }
}
