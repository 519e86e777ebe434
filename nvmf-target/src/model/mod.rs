//! What the target serves and to whom: subsystems, namespaces, allowed hosts, controllers.
//!
//! The control thread owns and changes these; shards read snapshots of them ([`NamespaceTable`], [`ControllerShared`]) that it sends
//! whenever one changes. Nothing here does I/O.

pub mod access;
pub mod controller;
pub mod counters;
pub mod histogram;
pub mod namespace;
pub mod registry;
pub mod subsystem;

pub use access::HostAccess;
pub use controller::{ControllerKey, ControllerShared};
pub use counters::{IoClass, IoCounters, IoTotals};
pub use histogram::LatencySummary;
pub use namespace::{Geometry, Namespace, NamespaceIds, NamespaceTable};
pub use nvme_proto::wire::Nqn;
pub use registry::{ControllerRegistry, RegistryFull};
pub use subsystem::{Subsystem, SubsystemId};
