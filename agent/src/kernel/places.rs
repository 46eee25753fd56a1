//! The named namespaces as they were read last, brought up to date by the kernel's events.
//!
//! To read one takes a thread that enters it, which is dear when there are hundreds. The kernel tells the worker what
//! happens in every namespace that has a number in the worker's own (linux: `do_one_broadcast`), so each is given one,
//! as `ip netns set NAME auto` does, and is read again when something was heard of it. No file or socket of a namespace
//! stays open: it would keep the namespace alive that somebody removes.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::File,
    os::fd::AsRawFd as _,
    time::{Duration, Instant},
};

use netlink_packet_route::{
    RouteNetlinkMessage,
    nsid::{NsidAttribute, NsidMessage},
};
use nix::errno::Errno;

use super::{
    KernelError,
    links::{Namespace, Place},
    netns::{self, Identity},
    observe::{self, Raw},
    rtnl::Rtnl,
    view::Heard,
};

/// How long an event that never came can go unnoticed.
const READ_ANEW: Duration = Duration::from_secs(30);

/// The named namespaces, without the worker's own.
#[derive(Debug)]
pub(super) struct Places {
    own: Identity,
    known: BTreeMap<String, Known>,
    own_names: Vec<String>,
}

#[derive(Debug)]
struct Known {
    identity: Identity,
    /// Its number in the worker's own namespace. Without one nothing is heard of it.
    number: Option<i32>,
    links: BTreeMap<u32, Raw>,
    /// Which namespaces its links mean by their numbers, as far as they are known here.
    meant: HashMap<i32, Identity>,
    /// Those that were asked for their number in it.
    asked: BTreeSet<Identity>,
    read: Instant,
}

impl Places {
    /// `own`: the worker's own namespace.
    pub(super) fn new(own: &File) -> Result<Self, KernelError> {
        Ok(Self { own: netns::identity(own)?, known: BTreeMap::new(), own_names: Vec::new() })
    }

    /// The names of the worker's own namespace.
    pub(super) fn own_names(&self) -> &[String] {
        &self.own_names
    }

    /// Reads what may be different; whether anything may be. `rtnl` is of the worker's own namespace.
    pub(super) fn refresh(
        &mut self,
        rtnl: &mut Rtnl,
        own: &File,
        heard: &Heard,
    ) -> Result<bool, KernelError> {
        let (mut found, mut own_names) = (BTreeMap::new(), Vec::new());
        for name in netns::names()? {
            // One that vanishes or is only half made must not hide all the rest.
            match netns::identity_of(&name) {
                Ok(identity) if identity == self.own => own_names.push(name),
                Ok(identity) => drop(found.insert(name, identity)),
                Err(_) => {}
            }
        }
        let count = self.known.len();
        self.known.retain(|name, known| found.get(name) == Some(&known.identity));
        let mut changed = self.known.len() != count || self.own_names != own_names;
        self.own_names = own_names;
        let stale = self.stale(heard);
        let to_read =
            found.iter().filter(|(name, _)| !self.known.contains_key(*name) || stale.contains(*name));
        let to_read: Vec<String> = to_read.map(|(name, _)| name.clone()).collect();
        for name in to_read {
            match Known::read(rtnl, &name) {
                Ok(Some(known)) => {
                    self.known.insert(name, known);
                    changed = true;
                }
                // Not there any more; or never was, and a file that is no namespace changes nothing.
                Ok(None) => changed |= self.known.remove(&name).is_some(),
                Err(error) => {
                    // It has to be read next time.
                    self.known.remove(&name);
                    return Err(error);
                }
            }
        }
        self.find_far_ends(own)?;
        Ok(changed)
    }

    /// Those of which something was heard, or nothing can be; of those that were not read for long, one, so that no look
    /// takes long because of it.
    fn stale(&self, heard: &Heard) -> BTreeSet<String> {
        let numbered = self.known.values().filter_map(|known| Some((known.number?, known.identity)));
        let numbered: HashMap<i32, Identity> = numbered.collect();
        let left = heard.left.iter().filter_map(|(number, index)| {
            Some((number.map_or(Some(self.own), |number| numbered.get(&number).copied())?, *index))
        });
        let left: BTreeSet<(Identity, u32)> = left.collect();
        let stale = |known: &Known| {
            heard.everything
                || known.number.is_none_or(|number| heard.numbers.contains(&number))
                || !left.is_empty() && known.far_ends().any(|far| left.contains(&far))
        };
        let oldest = self.known.iter().min_by_key(|(_, known)| known.read);
        let old = oldest.filter(|(_, known)| known.read.elapsed() > READ_ANEW);
        let heard_of = self.known.iter().filter(|(_, known)| stale(known));
        heard_of.chain(old).map(|(name, _)| name.clone()).collect()
    }

    /// Finds out which namespaces are meant by numbers not met before.
    fn find_far_ends(&mut self, own: &File) -> Result<(), KernelError> {
        let named = self.known.iter().map(|(name, known)| (known.identity, Some(name.clone())));
        let all: Vec<(Identity, Option<String>)> = std::iter::once((self.own, None)).chain(named).collect();
        for (name, known) in &mut self.known {
            known.find_far_ends(name, own, &all)?;
        }
        Ok(())
    }

    /// What the numbers mean that the worker's own namespace gives to others.
    pub(super) fn by_number(&self) -> HashMap<i32, Place> {
        let named = self.known.iter();
        named.filter_map(|(name, known)| Some((known.number?, Place::Named(name.clone())))).collect()
    }

    /// With far ends in their places.
    pub(super) fn namespaces(&mut self) -> Vec<Namespace> {
        let mut places: HashMap<Identity, Place> = HashMap::from([(self.own, Place::Here)]);
        for (name, known) in &self.known {
            places.entry(known.identity).or_insert_with(|| Place::Named(name.clone()));
        }
        let mut namespaces = Vec::new();
        for (name, known) in &mut self.known {
            let meant = known.meant.iter();
            let ids = meant.filter_map(|(id, identity)| Some((*id, places.get(identity)?.clone()))).collect();
            let links = observe::resolve(known.links.values_mut(), &Place::Named(name.clone()), &ids);
            namespaces.push(Namespace { name: name.clone(), links });
        }
        namespaces
    }
}

impl Known {
    /// `None` when it is gone, or no namespace.
    fn read(rtnl: &mut Rtnl, name: &str) -> Result<Option<Self>, KernelError> {
        let Ok(file) = netns::open(name) else { return Ok(None) };
        // Before its links: what happens after that is heard.
        let number = match number(rtnl, &file) {
            Ok(number) => number,
            Err(error) if is_no_namespace(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let links = match netns::inside(&file, name, || observe::links(&mut Rtnl::open()?)) {
            Ok(links) => links,
            Err(error) if is_no_namespace(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        Ok(Some(Self {
            identity: netns::identity(&file)?,
            number,
            links,
            meant: HashMap::new(),
            asked: BTreeSet::new(),
            read: Instant::now(),
        }))
    }

    /// The far ends of its pairs that are elsewhere.
    fn far_ends(&self) -> impl Iterator<Item = (Identity, u32)> {
        let links = self.links.values();
        links.filter_map(|raw| Some((*self.meant.get(&raw.peer_nsid?)?, raw.peer?)))
    }

    /// Asks the namespaces of `all` for their number in this one, as long as it has a number whose meaning is not known.
    /// The worker's own is the one without a name.
    fn find_far_ends(
        &mut self,
        name: &str,
        own: &File,
        all: &[(Identity, Option<String>)],
    ) -> Result<(), KernelError> {
        // Another namespace may be told by what told one that is gone.
        self.asked.retain(|asked| all.iter().any(|(there, _)| there == asked));
        let numbers = self.links.values().filter_map(|raw| raw.peer_nsid);
        let mut unknown: BTreeSet<i32> = numbers.filter(|number| !self.meant.contains_key(number)).collect();
        if unknown.is_empty() {
            return Ok(());
        }
        let to_ask: Vec<_> = all.iter().filter(|(identity, _)| !self.asked.contains(identity)).collect();
        if to_ask.is_empty() {
            return Ok(());
        }
        // Gone: the next look will tell.
        let Ok(here) = netns::open(name) else { return Ok(()) };
        let answers = netns::inside(&here, name, || {
            let mut rtnl = Rtnl::open()?;
            let mut answers = Vec::new();
            for (identity, name) in to_ask {
                let number = match name {
                    None => observe::nsid(&mut rtnl, own)?,
                    Some(name) => match netns::open(name) {
                        Ok(file) => observe::nsid(&mut rtnl, &file)?,
                        Err(_) => continue,
                    },
                };
                answers.push((*identity, number));
                if number.is_some_and(|number| unknown.remove(&number)) && unknown.is_empty() {
                    break;
                }
            }
            Ok(answers)
        })?;
        for (identity, number) in answers {
            self.asked.insert(identity);
            self.meant.extend(number.map(|number| (number, identity)));
        }
        Ok(())
    }
}

/// A namespace's number in the worker's own; one that has none gets one.
fn number(rtnl: &mut Rtnl, namespace: &File) -> Result<Option<i32>, KernelError> {
    let known = observe::nsid(rtnl, namespace)?;
    if known.is_some() {
        return Ok(known);
    }
    let mut message = NsidMessage::default();
    // -1: any.
    message.attributes.push(NsidAttribute::Id(-1));
    message.attributes.push(NsidAttribute::Fd(namespace.as_raw_fd().cast_unsigned()));
    match rtnl.change("number a network namespace", RouteNetlinkMessage::NewNsId(message), 0) {
        Ok(()) => observe::nsid(rtnl, namespace),
        // Without one it is read at each look.
        Err(_) => Ok(None),
    }
}

/// A file under `/run/netns` that no namespace is mounted on: EINVAL of netlink and of setns.
fn is_no_namespace(error: &KernelError) -> bool {
    error.errno == Some(Errno::EINVAL as i32)
}
