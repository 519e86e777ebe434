//! The control thread: everything but the data path.
//!
//! One thread with tokio-uring: it accepts, negotiates, runs admin queues and discovery, watches keep-alive timers, follows
//! signals, and tells the shards what changes. Nothing here is on the I/O path, and nothing here blocks for long except
//! opening a backing.
//!
//! | module | what lives there |
//! |---|---|
//! | [`net`] | sockets over tokio-uring |
//! | [`accept`], [`listeners`], [`ports`] | accepting, and where which subsystem is served |
//! | [`handshake`], [`connecting`], [`io_connect`] | from the first byte to a queue |
//! | [`admin`], [`pump`] | admin queues |
//! | [`rdma`] | RDMA: listening, the steps to a queue, admin queues |
//! | [`association`] | who is connected, and who has to wait for whom |
//! | [`discovery`], [`view`] | what hosts are told |
//! | [`target`], [`shards`], [`open`], [`flush`] | the state behind it all |
//! | [`plan`], [`reload`] | SIGHUP |
//! | [`live`] | changes by the management API and the pools |
//! | [`watch`] | looking for files that were deleted or truncated |
//! | [`run`], [`ready`] | start, signals, stop; telling others of it |

pub mod accept;
pub mod admin;
pub mod association;
mod auth;
pub mod connecting;
pub mod discovery;
pub mod flush;
pub mod handshake;
pub mod io_connect;
pub mod listeners;
pub mod live;
pub mod net;
pub mod open;
pub mod plan;
pub mod ports;
pub mod pump;
pub mod rdma;
pub mod ready;
pub mod reload;
pub mod run;
pub mod shards;
pub mod target;
pub mod view;
pub mod watch;
