//! A seeded simulator: a host and a target with its backend, over connections that delay, split and cut, under a pool that runs dry.
//!
//! What must hold, whatever happens: no command is lost, none completes twice, every acknowledged write is read back until a newer one
//! is acknowledged, no write of an ended association lands after that, and everything comes to rest when the disturbances stop.
//!
//! One run is a number of episodes, each a fresh world with its own parameters, driven by one seed. `SIM_SEED` and `SIM_STEPS` set
//! where the run starts and how long it is; a failure prints the seed of its episode: with that as `SIM_SEED` and `SIM_STEPS=1` the
//! same episode runs again.

#[path = "simulator/app.rs"]
mod app;
#[path = "simulator/host.rs"]
mod host;
#[path = "simulator/rng.rs"]
mod rng;
#[path = "simulator/target.rs"]
mod target;
#[path = "simulator/world.rs"]
mod world;

use world::{Stats, World};

/// Steps of an episode before it has to come to rest.
const EPISODE_STEPS: u64 = 4000;

fn from_env(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(value) => value
            .parse()
            .unwrap_or_else(|_| panic!("{name} is not a number: {value}")),
        Err(_) => default,
    }
}

fn run(seed: u64, steps: u64, fencing: bool) -> Result<Stats, String> {
    let mut total = Stats::default();
    let mut seed = seed;
    while total.steps < steps {
        let mut world = World::new(seed, fencing);
        let stats = world
            .run(EPISODE_STEPS)
            .map_err(|failure| format!("SIM_SEED={seed}: {failure}\n{}", world.describe()))?;
        total.add(&stats);
        seed = seed.wrapping_add(1);
    }
    Ok(total)
}

#[test]
fn a_million_steps() {
    let stats = run(
        from_env("SIM_SEED", 1),
        from_env("SIM_STEPS", 1_000_000),
        true,
    )
    .unwrap_or_else(|failure| panic!("{failure}"));
    println!("{stats:?}");
    // A run that avoids what it is for would pass as well.
    if stats.steps >= 1_000_000 {
        assert!(
            stats.commands > 20_000 && stats.reads_checked > 50_000,
            "{stats:?}"
        );
        assert!(
            stats.cuts > 400 && stats.reissued_writes > 1000,
            "{stats:?}"
        );
        assert!(
            stats.damaged > 20 && stats.aborted > 400 && stats.terminated > 40,
            "{stats:?}"
        );
        assert!(
            stats.pool_dry > 10_000 && stats.stale_commands > 200,
            "{stats:?}"
        );
    }
}

/// The simulator can see what it is there to see: without fencing, an old association's write lands on a newer one.
#[test]
fn without_fencing_a_stale_write_is_found() {
    let failure = run(1, 2_000_000, false).expect_err("stale writes go unnoticed");
    assert!(failure.contains("stale or lost write"), "{failure}");
}
