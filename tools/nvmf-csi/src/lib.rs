//! A CSI driver: volumes of the pools of nvmf-target, as PersistentVolumes where containers run.
//!
//! | module | what it is |
//! |---|---|
//! | [`proto`] | the interface, out of `proto/csi.proto` |
//! | [`identity`] | who this is and what it can do |
//! | [`controller`] | volumes, snapshots and grants, on the targets' management APIs |
//! | [`node`] | devices and mounts, on the initiator's daemon |
//! | [`attributes`] | where a volume is, in the words of volume and publish contexts |
//! | [`access`] | what a volume is to be used for |
//! | [`names`] | names of the orchestrator and of the pool |
//! | [`size`] | from a range of sizes to one |
//! | [`records`] | what a node must know of what it staged |
//! | [`locks`] | one call on a volume at a time |
//! | [`secrets`] | a certificate for a call, and never shown |
//! | [`status`] | from our errors to gRPC's codes |
//! | [`serve`] | the socket |
//!
//! The controller keeps no state: what it knows of a volume are the labels that it gave it in the pool. The node keeps one
//! small file for each staged volume. So either can be killed at any point, and a call that is made again goes on from
//! what it finds.

pub mod access;
pub mod attributes;
pub mod controller;
pub mod identity;
pub mod locks;
pub mod names;
pub mod node;
pub mod records;
pub mod secrets;
pub mod serve;
pub mod size;
pub mod status;

/// The interface's messages and services.
#[allow(missing_docs, clippy::all)]
pub mod proto {
    tonic::include_proto!("csi.v1");
}

/// What a call comes to.
pub type Result<T> = std::result::Result<T, tonic::Status>;
