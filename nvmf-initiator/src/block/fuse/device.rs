//! The device half: mounts the file system, attaches the loop device, hands both over after a crash.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use nvmf_io::sys::{fuse, loopdev};
use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags, ftruncate, openat, statx};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
use zerocopy::IntoBytes;

use super::front::FuseFrontEnd;
use super::wire;
use crate::block::device::{DeviceForm, DeviceState, Kept, Made, QueueSetup};
use crate::block::spec::{DeviceError, DeviceSpec, Geometry};

/// See the [module](super).
pub(in crate::block) struct FuseDevice {
    geometry: Arc<Geometry>,
    channels: Vec<Arc<OwnedFd>>,
    /// Taken by `attach`; closing it before anything is open ends the file system.
    mount: Option<OwnedFd>,
    /// Open, so that a resize can make the kernel ask for the size.
    file: Option<OwnedFd>,
    loop_device: Option<loopdev::LoopDevice>,
}

impl FuseDevice {
    pub fn create(spec: &DeviceSpec, geometry: Arc<Geometry>) -> Made<Self> {
        let first = fuse::open().map_err(geometry.step("open /dev/fuse"))?;
        let mount = mount(&first, &spec.name).map_err(geometry.step("make a FUSE file system"))?;
        let mut channels = vec![Arc::new(first)];
        for _ in 1..spec.queues {
            let channel = fuse::open_channel(&channels[0])
                .map_err(geometry.step("open another FUSE channel"))?;
            channels.push(Arc::new(channel));
        }
        let queues = front_ends(&channels, spec, &geometry);
        Ok((
            FuseDevice {
                geometry,
                channels,
                mount: Some(mount),
                file: None,
                loop_device: None,
            },
            queues,
        ))
    }

    pub fn resume(
        spec: &DeviceSpec,
        geometry: Arc<Geometry>,
        loop_number: u32,
        fds: Vec<OwnedFd>,
    ) -> Made<Self> {
        let loop_device = loopdev::LoopDevice::find(loop_number, &geometry.name)
            .map_err(geometry.step("take over its loop device"))?;
        let mut fds = fds.into_iter();
        let file = fds.next();
        let channels: Vec<_> = fds.map(Arc::new).collect();
        let Some(first) = channels.first() else {
            return Err(geometry.unsupported("its keeper has no FUSE channel"));
        };
        resend(first)
            .map_err(geometry.step("get the requests in flight again (this needs Linux 6.9)"))?;
        let queues = front_ends(&channels, spec, &geometry);
        let device = FuseDevice {
            geometry,
            channels,
            mount: None,
            file,
            loop_device: Some(loop_device),
        };
        Ok((device, queues))
    }

    /// Removes the loop device of a server that died and will not be resumed.
    pub fn remove_leftover(name: &str, loop_number: u32) -> io::Result<()> {
        loopdev::LoopDevice::find(loop_number, name)?.detach()
    }
}

impl DeviceForm for FuseDevice {
    fn attach(&mut self) -> Result<PathBuf, DeviceError> {
        let geometry = &self.geometry;
        if let Some(path) = self.path() {
            return Ok(path);
        }
        let Some(mount) = self.mount.take() else {
            return Err(geometry.unsupported("it is detached"));
        };
        let access = if geometry.read_only {
            OFlags::RDONLY
        } else {
            OFlags::RDWR
        };
        let file = openat(
            &mount,
            geometry.name.as_str(),
            access | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(|e| geometry.step("open its file on FUSE")(e.into()))?;
        // A process that dies closes its files, and a close waits for an answer to FLUSH, which nobody gives when it is the
        // server that dies. Since Linux 5.18 a flag of the open file turns that off; before, having once learnt that
        // there is no FLUSH, which a first close teaches.
        drop(
            file.try_clone()
                .map_err(geometry.step("duplicate the descriptor of its file"))?,
        );
        let config = loopdev::LoopConfig {
            block_size_bytes: geometry.block_size_bytes,
            read_only: geometry.read_only,
            name: &geometry.name,
        };
        let device = loopdev::LoopDevice::attach(&file, &config)
            .map_err(geometry.step("attach a loop device"))?;
        let direct = device.is_direct_io();
        let path = device.path();
        self.file = Some(file);
        self.loop_device = Some(device);
        if !direct.map_err(geometry.step("ask the loop device for its mode"))? {
            // Two page caches would hold the same data, and a write-back would need memory to free memory.
            return Err(geometry.unsupported("the loop device refused direct I/O on its file"));
        }
        Ok(path)
    }

    fn path(&self) -> Option<PathBuf> {
        self.loop_device.as_ref().map(loopdev::LoopDevice::path)
    }

    fn resize(&mut self, size_bytes: u64) -> Result<(), DeviceError> {
        self.geometry.set_size_bytes(size_bytes);
        let (Some(file), Some(device)) = (&self.file, &self.loop_device) else {
            return Ok(());
        };
        // The kernel takes the size that it knows of the file, and what it learns by asking it forgets again when a write has
        // ended meanwhile. What it sets it believes. A file that is only read cannot be set, and has no writes.
        let told = if self.geometry.read_only {
            let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC;
            statx(file, c"", flags, StatxFlags::SIZE).map(drop)
        } else {
            ftruncate(file, size_bytes)
        };
        told.map_err(|e| self.geometry.step("tell the kernel the size of its file")(e.into()))?;
        device
            .update_capacity()
            .map_err(self.geometry.step("resize the loop device"))
    }

    fn keep(&self) -> Result<Option<Kept>, DeviceError> {
        let (Some(file), Some(device)) = (&self.file, &self.loop_device) else {
            return Ok(None);
        };
        let gather = || -> io::Result<Vec<OwnedFd>> {
            let mut fds = Vec::with_capacity(self.channels.len() + 1);
            fds.push(file.try_clone()?);
            for channel in &self.channels {
                fds.push(channel.as_fd().try_clone_to_owned()?);
            }
            Ok(fds)
        };
        let fds = gather().map_err(self.geometry.step("duplicate its descriptors"))?;
        Ok(Some(Kept {
            state: DeviceState::Fuse {
                loop_number: device.number(),
            },
            fds,
        }))
    }
    /// Lets go of everything. With mount and file closed, and the loop device's own reference gone, the file system ends,
    /// and its channels tell the front ends.
    fn detach(&mut self) -> Result<(), DeviceError> {
        self.mount = None;
        self.file = None;
        self.channels.clear();
        let Some(device) = self.loop_device.take() else {
            return Ok(());
        };
        device
            .detach()
            .map_err(self.geometry.step("detach its loop device"))
    }
}

fn front_ends(
    channels: &[Arc<OwnedFd>],
    spec: &DeviceSpec,
    geometry: &Arc<Geometry>,
) -> Vec<QueueSetup> {
    let (limits, depth, readers) = (spec.limits, spec.queue_depth, spec.fuse_readers);
    let setup = |channel: &Arc<OwnedFd>| {
        let (channel, geometry) = (channel.clone(), geometry.clone());
        QueueSetup::new(move || FuseFrontEnd::new(channel, geometry, limits, depth, readers))
    };
    channels.iter().map(setup).collect()
}

/// A file system that is mounted nowhere; it lives as long as the returned descriptor, or a file of it, is open.
fn mount(channel: &OwnedFd, name: &str) -> io::Result<OwnedFd> {
    use rustix::mount::{fsconfig_create, fsconfig_set_string, fsmount, fsopen};
    let context = fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let context = context.as_fd();
    fsconfig_set_string(context, "source", name)?;
    fsconfig_set_string(context, "subtype", "nvmf")?;
    fsconfig_set_string(context, "fd", channel.as_raw_fd().to_string())?;
    fsconfig_set_string(context, "rootmode", "40000")?;
    fsconfig_set_string(context, "user_id", "0")?;
    fsconfig_set_string(context, "group_id", "0")?;
    fsconfig_create(context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    Ok(fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

/// Asks the kernel to queue again every request that was read and not answered.
fn resend(channel: &OwnedFd) -> io::Result<()> {
    let notification = wire::OutHeader {
        len: size_of::<wire::OutHeader>() as u32,
        error: wire::NOTIFY_RESEND,
        unique: 0,
    };
    rustix::io::write(channel, notification.as_bytes())?;
    Ok(())
}
