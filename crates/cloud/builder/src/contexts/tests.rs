//! Folders change, and what is kept of them follows.
#![allow(clippy::unwrap_used)]

use super::*;

struct Client {
    _root: tempfile::TempDir,
    keeper: Keeper,
    came: PathBuf,
}

fn listed(path: &str, version: u32) -> Listed {
    Listed {
        path: path.to_owned(),
        folder: None,
        version: if version == 0 { String::new() } else { version.to_string() },
    }
}

fn folder(path: &str, version: u32) -> Listed {
    Listed { folder: Some(1_000_000_000), ..listed(path, version) }
}

impl Client {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let keeper = Keeper::open(root.path().join("kept")).unwrap();
        let came = root.path().join("came");
        Client { _root: root, keeper, came }
    }

    /// Sends what is asked for; a file's text is its version.
    async fn build(&self, entries: &[Listed]) -> Result<(Lease, usize)> {
        let listing = Listing { name: "n".to_owned(), entries: entries.to_vec() };
        let wanted = self.keeper.wanted(listing.clone()).await?;
        let _ = fs::remove_dir_all(&self.came);
        fs::create_dir_all(&self.came).unwrap();
        for number in &wanted {
            let one = &entries[*number];
            let at = self.came.join(&one.path);
            match one.folder {
                Some(_) => fs::create_dir_all(&at).unwrap(),
                None => {
                    fs::create_dir_all(at.parent().unwrap()).unwrap();
                    fs::write(&at, &one.version).unwrap();
                }
            }
        }
        Ok((self.keeper.take(listing, self.came.clone()).await?, wanted.len()))
    }
}

/// Files with their texts, and folders.
fn tree(root: &Path) -> Vec<String> {
    fn walk(root: &Path, below: &Path, all: &mut Vec<String>) {
        for entry in fs::read_dir(root.join(below)).unwrap() {
            let entry = entry.unwrap();
            let path = below.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                all.push(format!("{}/", path.display()));
                walk(root, &path, all);
            } else {
                all.push(format!("{}={}", path.display(), fs::read_to_string(root.join(&path)).unwrap()));
            }
        }
    }
    let mut all = Vec::new();
    walk(root, Path::new(""), &mut all);
    all.sort();
    all
}

#[tokio::test]
async fn only_what_changed_is_asked_for() {
    let client = Client::new();
    let first = [folder("a", 1), listed("a/x", 1), listed("a/y", 1), listed("b/c/z", 1), listed("m", 1)];
    let (lease, sent) = client.build(&first).await.unwrap();
    assert_eq!(sent, 5);
    assert_eq!(tree(&lease.folder), ["a/", "a/x=1", "a/y=1", "b/", "b/c/", "b/c/z=1", "m=1"]);
    assert_eq!(lease.digests[Path::new("a/x")], Digest::of(b"1"));
    // Nothing changed: builds share it.
    let (again, sent) = client.build(&first).await.unwrap();
    assert_eq!((sent, &again.folder), (0, &lease.folder));
    drop((lease, again));
    // A file for a folder, a folder for a file, one less, and one that changed.
    let second = [listed("a", 2), listed("b/c/z", 2), folder("m", 2), listed("m/n", 2)];
    let (lease, sent) = client.build(&second).await.unwrap();
    assert_eq!(sent, 4);
    assert_eq!(tree(&lease.folder), ["a=2", "b/", "b/c/", "b/c/z=2", "m/", "m/n=2"]);
    assert_eq!(lease.digests.len(), 3);
    let time = fs::metadata(lease.folder.join("m")).unwrap().modified().unwrap();
    assert_eq!(time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs(), 1_000_000_000);
    drop(lease);
    // Folders that were there for a file alone go with it.
    let (lease, sent) = client.build(&second[2..]).await.unwrap();
    assert_eq!((sent, tree(&lease.folder)), (0, vec!["m/".to_owned(), "m/n=2".to_owned()]));
}

#[tokio::test]
async fn a_folder_stays_when_all_in_it_is_left_out() {
    let client = Client::new();
    drop(client.build(&[folder("a", 1), listed("a/x", 1)]).await.unwrap());
    // As by a new line of a `.dockerignore`: the folder itself is as it was.
    let (lease, sent) = client.build(&[folder("a", 1)]).await.unwrap();
    assert_eq!((sent, tree(&lease.folder)), (0, vec!["a/".to_owned()]));
}

#[tokio::test]
async fn what_may_have_changed_is_asked_for_again() {
    let client = Client::new();
    let entries = [listed("sure", 1), listed("fresh", 0)];
    drop(client.build(&entries).await.unwrap());
    let (lease, sent) = client.build(&entries).await.unwrap();
    assert_eq!(sent, 1);
    assert_eq!(tree(&lease.folder), ["fresh=", "sure=1"]);
}

#[tokio::test]
async fn what_is_being_read_does_not_change() {
    let client = Client::new();
    let (lease, _) = client.build(&[listed("a", 1)]).await.unwrap();
    let refused = client.build(&[listed("a", 2)]).await.map(drop).unwrap_err();
    assert!(matches!(refused, Error::Stale(_)), "{refused}");
    client.keeper.trim_to(0).await.unwrap();
    assert_eq!(tree(&lease.folder), ["a=1"]);
    drop(lease);
    let (lease, _) = client.build(&[listed("a", 2)]).await.unwrap();
    assert_eq!(tree(&lease.folder), ["a=2"]);
}

#[tokio::test]
async fn what_went_meanwhile_is_missed() {
    let client = Client::new();
    drop(client.build(&[listed("a", 1)]).await.unwrap());
    client.keeper.trim_to(0).await.unwrap();
    let listing = Listing { name: "n".to_owned(), entries: vec![listed("a", 1)] };
    let empty = client.came.join("nothing");
    let refused = client.keeper.take(listing, empty).await.map(drop).unwrap_err();
    assert!(matches!(refused, Error::Stale(_)), "{refused}");
    let (lease, sent) = client.build(&[listed("a", 1)]).await.unwrap();
    assert_eq!((sent, tree(&lease.folder)), (1, vec!["a=1".to_owned()]));
}

#[tokio::test]
async fn a_change_that_failed_leaves_nothing() {
    let client = Client::new();
    let (lease, _) = client.build(&[listed("a", 1), listed("b", 1)]).await.unwrap();
    let place = lease.folder.parent().unwrap().to_owned();
    drop(lease);
    // As if it had been stopped in the middle.
    fs::remove_file(place.join("index.json")).unwrap();
    let (lease, sent) = client.build(&[listed("a", 1)]).await.unwrap();
    assert_eq!((sent, tree(&lease.folder)), (1, vec!["a=1".to_owned()]));
}

#[tokio::test]
async fn no_link_leads_out() {
    let client = Client::new();
    let outside = client.came.parent().unwrap().join("outside");
    fs::create_dir_all(&outside).unwrap();
    fs::write(outside.join("secret"), "s").unwrap();
    fs::create_dir_all(&client.came).unwrap();
    std::os::unix::fs::symlink(&outside, client.came.join("a")).unwrap();
    let listing = Listing { name: "n".to_owned(), entries: vec![listed("a/secret", 1)] };
    client.keeper.take(listing, client.came.clone()).await.map(drop).unwrap_err();
    assert!(outside.join("secret").exists());
}

#[tokio::test]
async fn what_came_is_what_was_listed() {
    let client = Client::new();
    fs::create_dir_all(client.came.join("a")).unwrap();
    let listing = Listing { name: "n".to_owned(), entries: vec![listed("a", 1)] };
    let refused = client.keeper.take(listing, client.came.clone()).await.map(drop).unwrap_err();
    assert!(matches!(refused, Error::Invalid(_)), "{refused}");
}
