//! Users and groups by name or number, as an image knows them.

use std::path::Path;

use dhow_image::View;

use crate::copy::At;
use crate::error::{Error, Result};

/// Whose a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    pub uid: u32,
    pub gid: u32,
}

/// `user[:group]`, each a name or a number, looked up in the image's own files.
pub fn find(text: &str, image: &View) -> Result<Owner> {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    let (uid, own) = match user.parse::<u32>() {
        Ok(uid) => (uid, uid),
        Err(_) => {
            let fields = entry(image, "/etc/passwd", user)?;
            let fields = fields.ok_or_else(|| Error::Invalid(format!("unable to find user {user}: invalid user")))?;
            (number(&fields, 2, user)?, number(&fields, 3, user)?)
        }
    };
    let gid = match group.map(|group| (group, group.parse::<u32>())) {
        None => own,
        Some((_, Ok(gid))) => gid,
        Some((group, Err(_))) => {
            let fields = entry(image, "/etc/group", group)?;
            let fields =
                fields.ok_or_else(|| Error::Invalid(format!("unable to find group {group}: invalid group")))?;
            number(&fields, 2, group)?
        }
    };
    Ok(Owner { uid, gid })
}

fn entry(image: &View, file: &str, name: &str) -> Result<Option<Vec<String>>> {
    let text = image.text(Path::new(file)).at("look up a name")?.unwrap_or_default();
    let mut lines = text.lines().map(|line| line.split(':').map(str::to_owned).collect::<Vec<_>>());
    Ok(lines.find(|fields| fields.first().is_some_and(|first| first == name)))
}

fn number(fields: &[String], at: usize, name: &str) -> Result<u32> {
    let field = fields.get(at).and_then(|field| field.parse().ok());
    field.ok_or_else(|| Error::Invalid(format!("the entry of {name} in the image is malformed")))
}
