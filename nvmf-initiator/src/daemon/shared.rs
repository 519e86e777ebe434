//! What all attachments of the node stand on: its shards, its keeper, the names of its devices, and what the next daemon will find.
//!
//! It knows no attachment: each enters its own record and keeps it true.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;

use tokio::sync::Notify;

use super::RunDir;
use super::keeper::Keeper;
use super::shard::DeviceShard;
use super::state::{ControllerRecord, Saver, State};

/// See the module's text.
pub(crate) struct Shared {
    pub run: RunDir,
    pub keeper: Keeper,
    /// Told whenever a controller came, went or changed.
    pub changed: Notify,
    shards: Vec<DeviceShard>,
    /// Names of devices in use.
    names: RefCell<BTreeSet<String>>,
    state: RefCell<State>,
    /// What the daemon before left is being taken up: until all of it is, the file is what that daemon wrote, which is true of
    /// every device, whoever dies meanwhile.
    is_resuming: Cell<bool>,
    saver: Saver,
}

impl Shared {
    /// `state` is what the daemon before left; the caller takes it up and then calls [`Shared::taken_up`].
    pub fn new(run: RunDir, shards: Vec<DeviceShard>, keeper: Keeper, state: State) -> Rc<Shared> {
        Rc::new(Shared {
            run,
            keeper,
            changed: Notify::new(),
            shards,
            names: RefCell::default(),
            state: RefCell::new(state),
            is_resuming: Cell::new(true),
            saver: Saver::default(),
        })
    }

    /// How many shards there are.
    pub fn shards(&self) -> usize {
        self.shards.len()
    }

    /// A shard by number, round and round.
    pub fn shard(&self, number: usize) -> &DeviceShard {
        &self.shards[number % self.shards.len()]
    }

    /// Takes `name`, or one like it that nobody has.
    pub fn reserve_name(&self, name: &str) -> String {
        let mut names = self.names.borrow_mut();
        let candidates = (2..).map(|number| format!("{name}-{number}"));
        let free = std::iter::once(name.to_owned())
            .chain(candidates)
            .find(|name| !names.contains(name));
        let free = free.expect("some number is free");
        names.insert(free.clone());
        free
    }

    pub fn free_name(&self, name: &str) {
        self.names.borrow_mut().remove(name);
    }

    /// A number for a new controller.
    pub fn next_number(&self) -> u32 {
        let mut state = self.state.borrow_mut();
        let number = state.next;
        state.next = number.wrapping_add(1);
        number
    }

    /// The controllers that the next daemon will find.
    pub fn records(&self) -> Vec<ControllerRecord> {
        self.state.borrow().controllers.clone()
    }

    /// Has the next daemon find this controller; returns when that is written.
    pub async fn enter(&self, record: ControllerRecord) {
        {
            let mut state = self.state.borrow_mut();
            match state.find(&record.name) {
                Some(known) => *known = record,
                None => state.controllers.push(record),
            }
        }
        self.save().await;
    }

    /// Renews what it will find; returns when that is written. What was forgotten stays so.
    pub async fn update(&self, record: ControllerRecord) {
        {
            let mut state = self.state.borrow_mut();
            match state.find(&record.name) {
                Some(known) if *known != record => *known = record,
                _ => return,
            }
        }
        self.save().await;
    }

    /// Has the next daemon not find the controller of this name.
    pub async fn forget(&self, name: &str) {
        {
            let mut state = self.state.borrow_mut();
            state.controllers.retain(|record| record.name != name);
        }
        self.save().await;
        self.changed.notify_waiters();
    }

    /// What the daemon before left is taken up: from now on the file follows this daemon.
    pub async fn taken_up(&self) {
        self.is_resuming.set(false);
        self.save().await;
        self.changed.notify_waiters();
    }

    async fn save(&self) {
        if !self.is_resuming.get() {
            let state = || self.state.borrow().clone();
            self.saver.save(&self.run, state).await;
        }
    }
}
