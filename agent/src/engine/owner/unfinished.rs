//! What a worker that was killed has left half done.
//!
//! A link is made before the store knows of it, or a failure in between would leave an object that does not exist.
//! A worker that is killed there leaves a link that nobody asked for, as far as anybody was told; the next start
//! removes it. What was about to be made was noted before, so the note and the link's mark have to agree.

use std::sync::Arc;

use nix::errno::Errno;
use tracing::{info, warn};

use crate::{
    error::{Code, Error, Result},
    kernel::{
        links::{At, Observed},
        step::LinkStep,
    },
    kinds,
    plan::Step,
    state::State,
};

use super::Owner;

impl Owner {
    /// Notes which links are about to be made, before any of them is.
    pub(super) async fn note_making(&self, steps: &[Step]) -> Result<()> {
        let links: Vec<At> = steps.iter().flat_map(Step::makes).collect();
        if links.is_empty() {
            return Ok(());
        }
        let store = Arc::clone(&self.store);
        tokio::task::spawn_blocking(move || store.note_making(&links))
            .await
            .map_err(|error| Error::new(Code::Internal, format!("the note ended early: {error}")))??;
        Ok(())
    }

    /// Removes the links that a killed worker had not finished; answers what is observed then.
    pub(super) async fn remove_unfinished(&self) -> Result<Arc<Observed>> {
        let observed = self.shared.observe().await?;
        let (unfinished, strange) = {
            let state = self.shared.state();
            sort(&observed, &state, &self.store.making())
        };
        for link in strange {
            warn!(%link, "marked as a worker's, but not in the store: left alone; delete it with `ip link del`");
        }
        if unfinished.is_empty() {
            return Ok(observed);
        }
        for link in unfinished {
            match self.shared.kernel.apply(&LinkStep::DeleteLink(link.clone())).await {
                Ok(()) => info!(%link, "the last worker had not finished making it: removed"),
                // The other end of a pair that has just gone.
                Err(error) if error.errno == Some(Errno::ENODEV as i32) => {}
                Err(error) => warn!(%link, %error, "half made by the last worker, and it cannot be removed"),
            }
        }
        self.shared.observe().await
    }
}

/// Links that were being made when the last worker was killed; and those that are marked and unknown: of a worker with
/// another state directory, or of whoever copied the mark. Only a person can tell.
fn sort(observed: &Observed, state: &State, making: &[At]) -> (Vec<At>, Vec<At>) {
    let (mut unfinished, mut strange) = (Vec::new(), Vec::new());
    for (place, link) in observed.everywhere() {
        let known = kinds::managed(state, &place, link);
        let at = At::new(place, &link.name);
        if link.half_made || (link.marked() && !known && making.contains(&at)) {
            unfinished.push(at);
        } else if link.marked() && !known {
            strange.push(at);
        }
    }
    (unfinished, strange)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{
        fake::device,
        links::{ALIAS, Link, LinkKind},
    };

    #[test]
    fn only_what_was_being_made_is_removed() {
        let link = |name: &str, alias: Option<&str>, half_made| Link {
            alias: alias.map(str::to_owned),
            half_made,
            ..device(2, name, LinkKind::Veth)
        };
        let links = vec![
            link("half", None, true),
            link("unfinished", Some(ALIAS), false),
            link("strange", Some(ALIAS), false),
            link("foreign", None, false),
        ];
        let observed = Observed { links: links.into(), ..Observed::default() };
        let making = ["unfinished", "foreign"].map(At::here);
        let (unfinished, strange) = sort(&observed, &State::default(), &making);
        assert_eq!(unfinished, ["half", "unfinished"].map(At::here));
        assert_eq!(strange, [At::here("strange")]);
    }
}
