//! Cases about images.

use super::{Outcome, Stage, container, ended, ensure, sandbox, start};
use crate::Error;

pub async fn pulls_with_credentials(stage: &mut Stage) -> Outcome {
    let Some(private) = stage.private_image.clone() else { return Err("the stage has no private image".into()) };
    let runtime = &stage.runtime;
    runtime.remove_image(&private.reference).await?;
    for auth in [None, Some(crate::runtime::ImageAuth { password: "wrong".into(), ..private.auth.clone() })] {
        let refused = runtime.pull_image(&private.reference, auth).await;
        ensure(matches!(&refused, Err(Error::ImagePull { reference, .. }) if *reference == private.reference), || {
            format!("{refused:?}")
        })?;
    }
    let id = runtime.pull_image(&private.reference, Some(private.auth.clone())).await?;
    let image = runtime.image_status(&private.reference).await?.ok_or("the image is not there")?;
    ensure(image.id == id && image.repo_tags.contains(&private.reference) && image.size > 0, || format!("{image:?}"))?;
    let listed = runtime.list_images().await?;
    ensure(listed.iter().any(|image| image.id == id), || format!("{listed:?}"))?;
    let pod = runtime.run_sandbox(sandbox(stage)).await?;
    let mut config = container(stage, "exit 0");
    config.image = private.reference.clone();
    let started = start(stage, &pod, config).await?;
    let status = ended(stage, &started).await?;
    ensure(status.exit_code == 0, || format!("{status:?}"))?;
    runtime.remove_sandbox(&pod).await?;
    runtime.remove_image(&private.reference).await?;
    let left = runtime.image_status(&private.reference).await?;
    ensure(left.is_none(), || format!("{left:?}"))
}
