//! Cases about logs and numbers.

use std::time::{Duration, SystemTime};

use super::{Outcome, Stage, container, ended, ensure, log, mount, run, sandbox, start, wait_for_line};

pub async fn writes_the_log_format(stage: &mut Stage) -> Outcome {
    let before = jiff::Timestamp::now();
    let (status, _) =
        run(stage, container(stage, "echo one; sleep 0.1; echo two; head -c 40000 /dev/zero | tr '\\0' x")).await?;
    let text = std::fs::read_to_string(&status.log_path)?;
    let mut last = before;
    let mut long = 0;
    for line in text.lines() {
        let mut fields = line.splitn(4, ' ');
        let time: jiff::Timestamp = fields.next().ok_or("no time")?.parse()?;
        ensure(time >= last, || format!("{time} is before {last}"))?;
        last = time;
        let (stream, tag, words) = (fields.next(), fields.next(), fields.next().unwrap_or_default());
        ensure(stream == Some("stdout") && matches!(tag, Some("F" | "P")), || line.chars().take(80).collect())?;
        if words.starts_with('x') {
            ensure(words.bytes().all(|byte| byte == b'x') && tag == Some("P"), || format!("{tag:?} {}", words.len()))?;
            long += words.len();
        }
    }
    ensure(long == 40_000, || format!("{long} bytes of the long line came"))
}

pub async fn goes_on_in_a_new_log(stage: &mut Stage) -> Outcome {
    let pod = stage.runtime.run_sandbox(sandbox(stage)).await?;
    let mut config = container(stage, "echo old; while [ ! -e /v/go ]; do sleep 0.05; done; echo new");
    config.mounts = vec![mount(&stage.scratch, "/v")];
    let id = start(stage, &pod, config).await?;
    wait_for_line(stage, &id, "old").await?;
    let path = stage.runtime.container_status(&id).await?.log_path;
    let rotated = path.with_extension("rotated");
    std::fs::rename(&path, &rotated)?;
    stage.runtime.reopen_container_log(&id).await?;
    std::fs::write(stage.scratch.join("go"), "")?;
    let status = ended(stage, &id).await?;
    ensure(log(&status) == "stdout F new\n", || log(&status))?;
    let old = std::fs::read_to_string(rotated)?;
    ensure(old.ends_with("stdout F old\n") && old.lines().count() == 1, || old.clone())?;
    Ok(stage.runtime.remove_sandbox(&pod).await?)
}

pub async fn counts_what_is_used(stage: &mut Stage) -> Outcome {
    let pod = stage.runtime.run_sandbox(sandbox(stage)).await?;
    let id =
        start(stage, &pod, container(stage, "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; echo up; sleep 1000"))
            .await?;
    wait_for_line(stage, &id, "up").await?;
    // Some runtimes gather their numbers from time to time.
    let begin = SystemTime::now();
    loop {
        let stats = stage.runtime.container_stats(&id).await?;
        if stats.cpu_usage_core_nanos > 1_000_000 && stats.memory_usage_bytes > 0 {
            ensure(stats.memory_working_set_bytes <= stats.memory_usage_bytes, || format!("{stats:?}"))?;
            break;
        }
        ensure(begin.elapsed()? < Duration::from_secs(20), || format!("{stats:?}"))?;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(stage.runtime.remove_sandbox(&pod).await?)
}

pub async fn changes_limits(stage: &mut Stage) -> Outcome {
    let pod = stage.runtime.run_sandbox(sandbox(stage)).await?;
    let mut config = container(stage, "sleep 1000");
    config.resources.memory_limit = Some(64 << 20);
    let id = start(stage, &pod, config.clone()).await?;
    let limit = async || {
        let script = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null";
        let command = ["/bin/sh".into(), "-c".into(), script.into()];
        let result = stage.runtime.exec_sync(&id, &command, None).await?;
        Ok::<_, super::Failure>(String::from_utf8(result.stdout)?.trim().to_owned())
    };
    let before = limit().await?;
    ensure(before == (64 << 20).to_string(), || format!("before: {before:?}"))?;
    config.resources.memory_limit = Some(96 << 20);
    stage.runtime.update_container_resources(&id, config.resources).await?;
    let after = limit().await?;
    ensure(after == (96 << 20).to_string(), || format!("after: {after:?}"))?;
    Ok(stage.runtime.remove_sandbox(&pod).await?)
}
