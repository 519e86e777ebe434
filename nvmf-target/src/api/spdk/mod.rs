//! Methods that SPDK has too: its names, parameters and results, so that what was written for it works here.
//!
//! Where an option asks for what is not built here the request is refused with -95 and says so; options that tune SPDK's own
//! insides, and mean nothing here, are taken and have no effect.

pub mod address;
pub mod bdev_list;
pub mod bdevs;
pub mod config;
pub mod hosts;
pub mod iostat;
pub mod listeners;
pub mod stats;
pub mod subsystems;
pub mod transports;

use std::rc::Rc;

use nvmf_rpc::RpcError;
use serde::Deserialize;

use super::Methods;
use super::manager::Manager;

/// The one target that SPDK's programs make, and that its clients may name.
const TARGET_NAME: &str = "nvmf_tgt";

/// Adds the methods that are functions of the manager and their parameters.
macro_rules! register {
    ($methods:ident, $manager:ident: $($name:literal => $function:expr,)*) => {
        $({
            let manager = std::rc::Rc::clone($manager);
            $methods.add_named($name, move |_, params| {
                $function(std::rc::Rc::clone(&manager), params)
            });
        })*
    };
}
use register;

/// Adds all methods of this module.
pub fn register_all(methods: &mut Methods, manager: &Rc<Manager>) {
    bdevs::register(methods, manager);
    bdev_list::register(methods, manager);
    iostat::register(methods, manager);
    subsystems::register(methods, manager);
    hosts::register(methods, manager);
    listeners::register(methods, manager);
    transports::register(methods, manager);
    stats::register(methods, manager);
    config::register(methods, manager);
}

/// Parameters of a method about one subsystem.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct OneSubsystem {
    nqn: String,
    tgt_name: Option<String>,
}

/// Refuses any target but the one.
fn check_target(name: Option<&str>) -> Result<(), RpcError> {
    match name {
        None | Some(TARGET_NAME) => Ok(()),
        Some(other) => Err(RpcError::internal(format!(
            "there is no target {other:?}; leave tgt_name out"
        ))),
    }
}

/// Refuses an option that asks for what is not built.
fn unsupported(asked: bool, option: &str) -> Result<(), RpcError> {
    if asked {
        let message = format!("{option} is not supported; leave it out");
        Err(RpcError::not_supported(message))
    } else {
        Ok(())
    }
}
