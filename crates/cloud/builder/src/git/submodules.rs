//! What a repository has of others.

use std::fs;
use std::path::Path;

use super::{Git, Logins, Who, address};
use crate::copy::At;
use crate::error::{Error, Result};
use crate::event::Step;

/// Submodules of submodules are usual; more levels than this mean harm.
const DEPTH: usize = 10;
/// Most submodules altogether.
const MOST: usize = 200;

/// A place in a repository that another one fills.
#[derive(Debug, Default, PartialEq, Eq)]
struct Submodule {
    name: String,
    path: String,
    url: String,
    left_out: bool,
}

/// Fetches all submodules of what was checked out, and theirs.
pub async fn fetch(top: Git<'_>, logins: &Logins, who: Who<'_>, home: &Path, step: &Step) -> Result<()> {
    let mut waiting = vec![(top, 0)];
    let mut count = 0;
    while let Some((parent, depth)) = waiting.pop() {
        for module in parent.submodules().await? {
            let Some(commit) = parent.linked(&module.path).await? else { continue };
            count += 1;
            if depth >= DEPTH || count > MOST {
                let why = format!("more than {MOST} submodules, or {DEPTH} of them inside each other");
                return Err(Error::Invalid(why));
            }
            let url = address::below(&parent.url, &module.url)?;
            let folder = crate::source::below(&parent.folder, &module.path)?;
            if fs::read_dir(&folder).at("look into the folder of a submodule")?.next().is_some() {
                return Err(Error::Invalid(format!("the folder of submodule {} is not empty", module.path)));
            }
            let home = home.join(count.to_string());
            fs::create_dir_all(&home).at("make a folder for git")?;
            let login = logins.of_submodule(&url, &parent.url);
            let git = Git::new(&url, &login, who, &folder, &home, step).await;
            let fetched = match git {
                Ok(git) => git.fetch(&commit).await.map(|()| git),
                Err(error) => Err(error),
            };
            let git = fetched.map_err(|error| match error {
                Error::Invalid(why) => Error::Invalid(format!("submodule {}: {why}", module.path)),
                Error::Unreachable(why) => Error::Unreachable(format!("submodule {}: {why}", module.path)),
                error => error,
            })?;
            step.output(false, format!("{commit} {}\n", module.path).as_bytes());
            waiting.push((git, depth + 1));
        }
    }
    Ok(())
}

impl Git<'_> {
    /// What `.gitmodules` lists, as it was committed.
    async fn submodules(&self) -> Result<Vec<Submodule>> {
        if self.run(&["ls-tree", "HEAD", "--", ".gitmodules"]).await?.is_empty() {
            return Ok(Vec::new());
        }
        let list = ["config", "--blob", "HEAD:.gitmodules", "--no-includes", "--list", "-z"];
        Ok(parse(&self.run(&list).await?))
    }

    /// The commit that belongs to a path; `None` if something else is there.
    async fn linked(&self, path: &str) -> Result<Option<String>> {
        let said = self.run(&["ls-tree", "-z", "HEAD", "--", path]).await?;
        let entry = said.trim_end_matches('\0').split_once('\t');
        let commit = entry.and_then(|(entry, _)| entry.strip_prefix("160000 commit "));
        Ok(commit.map(str::to_owned))
    }
}

/// Reads names and values with a line break between them, each pair ended by a NUL.
fn parse(text: &str) -> Vec<Submodule> {
    let mut all: Vec<Submodule> = Vec::new();
    for pair in text.split('\0') {
        let Some((key, value)) = pair.split_once('\n') else { continue };
        let Some((name, field)) = key.strip_prefix("submodule.").and_then(|key| key.rsplit_once('.')) else { continue };
        let at = all.iter().position(|one| one.name == name).unwrap_or_else(|| {
            all.push(Submodule { name: name.to_owned(), ..Submodule::default() });
            all.len() - 1
        });
        match field {
            "path" => all[at].path = dhow_image::clean(value),
            "url" => value.clone_into(&mut all[at].url),
            "update" => all[at].left_out = value == "none",
            _ => {}
        }
    }
    all.retain(|one| !one.path.is_empty() && !one.url.is_empty() && !one.left_out);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn submodules_are_listed() {
        let text = "submodule.a.b.path\nlib/../a\0submodule.a.b.url\n../b.git\0submodule.c.path\nc\0\
            submodule.d.path\nd\0submodule.d.url\nhttps://h/d\0submodule.d.update\nnone\0";
        let want = Submodule { name: "a.b".into(), path: "a".into(), url: "../b.git".into(), left_out: false };
        assert_eq!(parse(text), [want]);
    }
}
