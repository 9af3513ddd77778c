//! Whether there is a network for pods: follows the folder of configurations.

use std::path::PathBuf;

use dhow_base::directory::DirectoryWatch;
use tokio::sync::watch;

use super::list::NetworkList;
use crate::{Error, Result};

/// What is wrong with the folder, now and whenever it changes.
pub(super) fn follow(folder: PathBuf) -> Result<watch::Receiver<Option<String>>> {
    let failed = |context: &'static str| {
        let path = folder.clone();
        move |source| Error::File { context, path, source }
    };
    std::fs::create_dir_all(&folder).map_err(failed("create"))?;
    let changes = DirectoryWatch::new(&folder).map_err(failed("watch"))?;
    // Seen after the watch began, so that nothing is missed.
    let (problem, seen) = watch::channel(problem(&folder));
    tokio::spawn(async move {
        loop {
            tokio::select! {
                () = problem.closed() => return,
                changed = changes.changed() => if let Err(error) = changed {
                    tracing::warn!(%error, folder = %folder.display(), "cannot follow the network configurations");
                    return;
                },
            }
            let now = self::problem(&folder);
            problem.send_if_modified(|known| {
                let changed = *known != now;
                *known = now;
                changed
            });
        }
    });
    Ok(seen)
}

fn problem(folder: &std::path::Path) -> Option<String> {
    NetworkList::find(folder).err().map(|why| format!("Network plugin returns error: {why}"))
}
