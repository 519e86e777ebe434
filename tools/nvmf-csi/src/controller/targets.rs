//! The targets that a driver serves volumes of: which one an identifier means, and all of them asked at once.
//!
//! ```text
//!  --rpc /run/nvmf-target/rpc.sock      the target "default": its volumes are POOL/NAME
//!  --rpc east=tls://10.0.0.2:4421       the target "east": its volumes are east/POOL/NAME
//! ```
//!
//! What names a target goes there and nowhere else, so that one which is down holds up none of the others. What must be known of
//! all is known only when all have answered: an answer without one of them would be taken for the whole.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use nvmf_rpc::error::code;
use nvmf_rpc::tls::ClientTexts;
use nvmf_rpc::types::{GetPools, GetSnapshots, GetVolumes, Labels, Method, Snapshot, Volume};
use nvmf_rpc::{Endpoint, TlsArgs};
use tokio::task::JoinSet;
use tonic::Status;

use super::placement::Scope;
use super::target::{About, LABEL_NAME, Target, TargetError};
use crate::Result;
use crate::names::{DEFAULT_TARGET, Id, is_target};
use crate::status::of_target;

/// How long a target is waited for in which a volume cannot be, and which is asked all the same.
const UNLIKELY_LIMIT: Duration = Duration::from_secs(3);

/// The targets; at least one.
#[derive(Debug, Clone)]
pub struct Targets(Arc<[Target]>);

/// A segment of a topology, of one target or of all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Whose; `None` for all.
    pub target: Option<String>,
    /// The key.
    pub key: String,
    /// The value.
    pub value: String,
}

/// Takes a target's name off the beginning, if there is one.
fn named(text: &str, separator: char) -> (Option<&str>, &str) {
    match text.split_once(separator) {
        Some((name, rest)) if is_target(name) => (Some(name), rest),
        _ => (None, text),
    }
}

impl Segment {
    /// Reads `[TARGET:]KEY=VALUE`.
    pub fn written(text: &str) -> std::result::Result<Segment, String> {
        let wrong = || "it is not [TARGET:]KEY=VALUE".to_owned();
        let (key, value) = text.split_once('=').ok_or_else(wrong)?;
        let (target, key) = named(key, ':');
        match key.is_empty() || value.is_empty() {
            true => Err(wrong()),
            false => Ok(Segment {
                target: target.map(str::to_owned),
                key: key.to_owned(),
                value: value.to_owned(),
            }),
        }
    }
}

impl Targets {
    /// What the command line says: `rpc` are `[NAME=]PATH|tls://HOST:PORT`, at least one; `traddr` are `[TARGET=]ADDRESS`.
    pub fn written(
        rpc: &[String],
        tls: &TlsArgs,
        traddr: &[String],
        topology: &[Segment],
    ) -> anyhow::Result<Targets> {
        let mut targets: Vec<Target> = Vec::new();
        for text in rpc {
            let (name, place) = named(text, '=');
            let endpoint = Endpoint::written(place, tls).context("--rpc")?;
            let name = name.unwrap_or(DEFAULT_TARGET);
            if targets.iter().any(|target| target.name() == name) {
                bail!(
                    "--rpc {text}: there is a target {name} already: give each a name of its own, as NAME={place}"
                );
            }
            if let Some(same) = targets.iter().find(|t| *t.endpoint() == endpoint) {
                bail!("--rpc {text}: this is target {} already", same.name());
            }
            let mut about = About {
                name: name.to_owned(),
                is_named: rpc.len() > 1 || name != DEFAULT_TARGET,
                ..About::default()
            };
            // What is said of all of them first, what is said of this one over it.
            for of in [None, Some(name)] {
                let addresses = traddr.iter().map(|text| named(text, '='));
                for (_, address) in addresses.filter(|(target, _)| *target == of) {
                    about.traddr = Some(address.to_owned());
                }
                for segment in topology.iter().filter(|s| s.target.as_deref() == of) {
                    let (key, value) = (segment.key.clone(), segment.value.clone());
                    about.topology.insert(key, value);
                }
            }
            targets.push(Target::new(about, endpoint));
        }
        let addressed = traddr.iter().filter_map(|text| named(text, '=').0);
        let placed = topology.iter().filter_map(|s| s.target.as_deref());
        for (flag, name) in addressed
            .map(|name| ("--traddr", name))
            .chain(placed.map(|name| ("--topology", name)))
        {
            if !targets.iter().any(|target| target.name() == name) {
                bail!("{flag}: there is no target {name}: --rpc {name}=… is missing");
            }
        }
        Ok(Targets(targets.into()))
    }

    /// The same targets, asked as whoever has this certificate.
    pub fn as_holder(&self, certificate: &ClientTexts) -> Result<Targets> {
        let holder = |target: &Target| target.as_holder(certificate.clone());
        Ok(Targets(
            self.0
                .iter()
                .map(holder)
                .collect::<Result<Vec<_>>>()?
                .into(),
        ))
    }

    /// All of them, in the order of the command line.
    pub fn all(&self) -> &[Target] {
        &self.0
    }

    /// The one of this name.
    pub fn named(&self, name: &str) -> Option<&Target> {
        self.0.iter().find(|target| target.name() == name)
    }

    /// Their names, for errors.
    pub fn names(&self) -> String {
        let names: Vec<_> = self.0.iter().map(Target::name).collect();
        names.join(", ")
    }

    /// The target that an identifier means. One that the command line does not name may hold what is meant: it is not said to be
    /// gone.
    pub fn of(&self, id: &Id) -> Result<&Target> {
        self.named(&id.target).ok_or_else(|| {
            Status::unavailable(format!(
                "{id} is on target {}, and this driver was started with {} alone: give it that target's --rpc, too",
                id.target,
                self.names()
            ))
        })
    }

    /// A volume that must exist, and where it is.
    pub async fn existing_volume(&self, text: &str) -> Result<(Id, &Target, Volume)> {
        let id = Id::existing("volume", text)?;
        let target = self.of(&id)?;
        match target.volume(&id).await? {
            Some(volume) => Ok((id, target, volume)),
            None => Err(Status::not_found(format!("there is no volume {id}"))),
        }
    }

    /// A snapshot that must exist, and where it is.
    pub async fn existing_snapshot(&self, text: &str) -> Result<(Id, &Target, Snapshot)> {
        let id = Id::existing("snapshot", text)?;
        let target = self.of(&id)?;
        match target.snapshot(&id).await? {
            Some(snapshot) => Ok((id, target, snapshot)),
            None => Err(Status::not_found(format!("there is no snapshot {id}"))),
        }
    }

    /// All volumes of this driver, by identifier.
    pub async fn volumes(&self) -> Result<Vec<(Id, Target, Volume)>> {
        Ok(by_id(self.ask_all(&GetVolumes::default()).await?))
    }

    /// All snapshots of this driver, by identifier.
    pub async fn snapshots(&self) -> Result<Vec<(Id, Target, Snapshot)>> {
        Ok(by_id(self.ask_all(&GetSnapshots::default()).await?))
    }

    /// Those on one target.
    pub async fn snapshots_on(&self, target: &Target) -> Result<Vec<(Id, Target, Snapshot)>> {
        Ok(by_id(vec![(target.clone(), target.snapshots().await?)]))
    }

    /// The volume that a pool calls `name` and that `is` knows, wherever it is; one that is where `scope` allows goes before others.
    ///
    /// `None` is said only when each target has answered in which `scope` allows it: an earlier call may have chosen any of these.
    pub async fn find(
        &self,
        scope: &Scope,
        name: &str,
        is: impl Fn(&Volume) -> bool,
    ) -> Result<Option<(Target, Volume)>> {
        let params = GetVolumes {
            pool: None,
            name: Some(name.to_owned()),
        };
        let limit = |target: &Target| match scope.has(target) {
            true => None,
            false => Some(UNLIKELY_LIMIT),
        };
        let mut elsewhere = Vec::new();
        let mut silent = None;
        let mut calls = start(&self.0, &params, limit);
        while let Some((place, (target, answer))) = next(&mut calls).await? {
            match answer {
                Ok(volumes) => {
                    for volume in volumes.into_iter().filter(&is) {
                        if scope.holds(&target, &volume.pool) {
                            // Nobody else needs to answer, then: one may be down.
                            return Ok(Some((target, volume)));
                        }
                        elsewhere.push((place, target.clone(), volume));
                    }
                }
                Err(error) if error.code() == Some(code::NOT_FOUND) => {}
                Err(error) if scope.has(&target) => silent = silent.or(Some(error)),
                Err(error) => {
                    tracing::warn!(name, %error, "not known whether it has such a volume")
                }
            }
        }
        let first = elsewhere.into_iter().min_by_key(|(place, ..)| *place);
        match (first, silent) {
            (Some((_, target, volume)), _) => Ok(Some((target, volume))),
            (None, Some(error)) => Err(of_target(&error)),
            (None, None) => Ok(None),
        }
    }

    /// Whether one of them answers, at least.
    pub async fn any_answers(&self) -> Result<bool> {
        let mut calls = start(&self.0, &GetPools::default(), |_| None);
        while let Some((_, (_, answer))) = next(&mut calls).await? {
            match answer {
                Ok(_) => return Ok(true),
                Err(error) => tracing::warn!(%error, "a target does not answer"),
            }
        }
        Ok(false)
    }

    /// Asks all at once; an error if one fails.
    async fn ask_all<M>(&self, params: &M) -> Result<Vec<(Target, M::Result)>>
    where
        M: Method + Clone + Send + Sync + 'static,
        M::Result: Send + 'static,
    {
        let answers = each(&self.0, params, |_| None).await?;
        let whole = answers.into_iter().map(|(target, answer)| {
            let answer = answer.map_err(|error| of_target(&error))?;
            Ok((target, answer))
        });
        whole.collect()
    }
}

/// What pools hold.
trait Held {
    /// Pool, name and labels.
    fn held(&self) -> (&str, &str, &Labels);
}

impl Held for Volume {
    fn held(&self) -> (&str, &str, &Labels) {
        (&self.pool, &self.name, &self.labels)
    }
}

impl Held for Snapshot {
    fn held(&self) -> (&str, &str, &Labels) {
        (&self.pool, &self.name, &self.labels)
    }
}

/// What this driver made of what several targets hold, in the order of its identifiers.
fn by_id<T: Held>(held: Vec<(Target, Vec<T>)>) -> Vec<(Id, Target, T)> {
    let of_target = |(target, held): (Target, Vec<T>)| {
        held.into_iter().filter_map(move |one| {
            let (pool, name, labels) = one.held();
            let id = labels
                .contains_key(LABEL_NAME)
                .then(|| target.id(pool, name))?;
            Some((id, target.clone(), one))
        })
    };
    let mut all: Vec<_> = held.into_iter().flat_map(of_target).collect();
    all.sort_by(|(a, ..), (b, ..)| a.cmp(b));
    all
}

/// What a target answered.
type Answered<M> = (
    Target,
    std::result::Result<<M as Method>::Result, TargetError>,
);

/// Calls that are under way, each with the place of its target.
type Calls<M> = JoinSet<(usize, Answered<M>)>;

/// Asks several targets at once, each within its limit, if it has one.
fn start<M>(targets: &[Target], params: &M, limit: impl Fn(&Target) -> Option<Duration>) -> Calls<M>
where
    M: Method + Clone + Send + Sync + 'static,
    M::Result: Send + 'static,
{
    let mut calls = JoinSet::new();
    for (place, target) in targets.iter().cloned().enumerate() {
        let (params, limit) = (params.clone(), limit(&target));
        calls.spawn(async move {
            let answer = match limit {
                Some(limit) => target.call_within(limit, &params).await,
                None => target.call(&params).await,
            };
            (place, (target, answer))
        });
    }
    calls
}

/// The next answer; `None` after the last.
async fn next<T: 'static>(calls: &mut JoinSet<T>) -> Result<Option<T>> {
    let bug = |error| Status::internal(format!("a bug in nvmf-csi: {error}"));
    calls.join_next().await.transpose().map_err(bug)
}

/// All answers, in the targets' order.
pub(super) async fn each<M>(
    targets: &[Target],
    params: &M,
    limit: impl Fn(&Target) -> Option<Duration>,
) -> Result<Vec<Answered<M>>>
where
    M: Method + Clone + Send + Sync + 'static,
    M::Result: Send + 'static,
{
    let mut calls = start(targets, params, limit);
    let mut answers = Vec::new();
    while let Some(answer) = next(&mut calls).await? {
        answers.push(answer);
    }
    answers.sort_by_key(|(place, _)| *place);
    Ok(answers.into_iter().map(|(_, answer)| answer).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn targets(rpc: &[&str], traddr: &[&str], topology: &[&str]) -> anyhow::Result<Targets> {
        let owned = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
        let segments = topology.iter().map(|text| Segment::written(text).unwrap());
        let segments: Vec<_> = segments.collect();
        Targets::written(&owned(rpc), &TlsArgs::default(), &owned(traddr), &segments)
    }

    #[test]
    fn the_single_form_is_the_target_without_a_name() {
        let one = targets(&["/run/a=b.sock"], &["192.0.2.1"], &["zone=a:1"]).unwrap();
        let about = one.all()[0].about();
        assert_eq!((about.name.as_str(), about.is_named), ("default", false));
        assert_eq!(about.traddr.as_deref(), Some("192.0.2.1"));
        assert_eq!(about.topology, [("zone".into(), "a:1".into())].into());
        assert_eq!(one.all()[0].endpoint().to_string(), "/run/a=b.sock");
        let id: Id = "fast/v".parse().unwrap();
        assert_eq!(one.of(&id).unwrap().name(), "default");
        assert_eq!(one.all()[0].id("fast", "v"), id);
    }

    #[test]
    fn what_is_said_of_one_goes_before_what_is_said_of_all() {
        let two = targets(
            &["/run/a", "east=/run/b"],
            &["192.0.2.1", "east=192.0.2.2"],
            &["zone=a", "rack=1", "east:zone=b"],
        )
        .unwrap();
        let about = |name: &str| two.named(name).unwrap().about().clone();
        let of = |zone: &str| [("rack".into(), "1".into()), ("zone".into(), zone.into())].into();
        assert_eq!(about("default").topology, of("a"));
        assert_eq!(about("east").topology, of("b"));
        assert_eq!(about("default").traddr.as_deref(), Some("192.0.2.1"));
        assert_eq!(about("east").traddr.as_deref(), Some("192.0.2.2"));
        assert!(about("default").is_named && about("east").is_named);
        let unknown = two.of(&"west/fast/v".parse().unwrap()).unwrap_err();
        assert_eq!(unknown.code(), tonic::Code::Unavailable);
        assert!(unknown.message().contains("default, east"), "{unknown}");
    }

    #[test]
    fn mistakes_are_found() {
        for (rpc, traddr, topology, said) in [
            (
                &["/a", "/b"][..],
                &[][..],
                &[][..],
                "a target default already",
            ),
            (&["x=/a", "x=/b"], &[], &[], "a target x already"),
            (&["/a", "x=/a"], &[], &[], "this is target default already"),
            (&["x=tls://h:1"], &[], &[], "--rpc"),
            (
                &["/a"],
                &["x=192.0.2.1"],
                &[],
                "--traddr: there is no target x",
            ),
            (&["/a"], &[], &["x:k=v"], "--topology: there is no target x"),
        ] {
            let error = targets(rpc, traddr, topology).unwrap_err().to_string();
            assert!(error.contains(said), "{said}: {error}");
        }
        for wrong in ["", "a", "=b", "a=", "x:=b"] {
            assert!(Segment::written(wrong).is_err(), "{wrong}");
        }
    }
}
