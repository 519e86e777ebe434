//! Counted places for connections.

use std::cell::Cell;
use std::rc::Rc;

/// So many places. Clones are the same room.
#[derive(Clone)]
pub struct Room(Rc<Cell<usize>>);

impl Room {
    /// With `places` free.
    pub fn new(places: usize) -> Self {
        Room(Rc::new(Cell::new(places)))
    }

    /// One of them, if there is one.
    pub fn take(&self) -> Option<Place> {
        self.0.set(self.0.get().checked_sub(1)?);
        Some(Place(Rc::clone(&self.0)))
    }
}

/// A place that is taken; free again when this goes.
pub struct Place(Rc<Cell<usize>>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.set(self.0.get() + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_come_back() {
        let room = Room::new(2);
        let (first, second) = (room.take(), room.clone().take());
        assert!(first.is_some() && second.is_some() && room.take().is_none());
        drop(first);
        let again = room.take();
        assert!(again.is_some() && room.take().is_none());
    }
}
