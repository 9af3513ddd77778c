//! What newer kubelets read that Debian's containerd does not tell yet.

use std::collections::HashMap;
use std::time::Duration;

use dhow_cri::proto;
use dhow_cri::proto::ContainerEventType::{ContainerDeletedEvent, ContainerStartedEvent, ContainerStoppedEvent};
use libtest_mimic::Failed;

use crate::calls::Caller;

pub async fn all(caller: &mut Caller) -> Result<(), Failed> {
    let text = |status: tonic::Status| Failed::from(status.to_string());
    let mut events = caller.runtime.get_container_events(proto::GetEventsRequest {}).await.map_err(text)?.into_inner();
    let driver = caller.runtime.runtime_config(proto::RuntimeConfigRequest {}).await.map_err(text)?.into_inner();
    assert_eq!(driver.linux.unwrap_or_default().cgroup_driver(), proto::CgroupDriver::Cgroupfs);

    let config = caller.sandbox_config("events");
    let sandbox = caller.run(config.clone()).await.map_err(text)?.into_inner().pod_sandbox_id;
    let wanted = caller.container_config("main", "sleep 1000");
    let container = caller.create(&sandbox, Some(wanted), &config).await.map_err(text)?.into_inner().container_id;
    let request = proto::StartContainerRequest { container_id: container.clone() };
    caller.runtime.start_container(request).await.map_err(text)?;

    // A kubelet resizes by the limits that it reads, and sees what became of it.
    let limits = |status: proto::ContainerStatusResponse| {
        status.status.unwrap_or_default().resources.unwrap_or_default().linux.unwrap_or_default()
    };
    let before = limits(caller.status_of(&container, false).await.map_err(text)?.into_inner());
    assert_eq!(before.memory_limit_in_bytes, 64 << 20);
    let linux =
        proto::LinuxContainerResources { memory_limit_in_bytes: 96 << 20, cpu_shares: 512, ..Default::default() };
    let request = proto::UpdateContainerResourcesRequest {
        container_id: container.clone(),
        linux: Some(linux),
        ..Default::default()
    };
    caller.runtime.update_container_resources(request).await.map_err(text)?;
    let after = limits(caller.status_of(&container, false).await.map_err(text)?.into_inner());
    assert_eq!((after.memory_limit_in_bytes, after.cpu_shares), (96 << 20, 512));

    // Secrets may be in the environment.
    let mut secretive = caller.container_config("secretive", "sleep 1000");
    secretive.envs = vec![proto::KeyValue { key: "PASSWORD".to_owned(), value: b"hunter2".to_vec() }];
    let made = caller.create(&sandbox, Some(secretive), &config).await.map_err(text)?.into_inner().container_id;
    let info = caller.status_of(&made, true).await.map_err(text)?.into_inner().info;
    assert!(info["info"].contains(&sandbox) && !info["info"].contains("hunter2"), "{info:?}");
    let request = proto::RemoveContainerRequest { container_id: made.clone() };
    caller.runtime.remove_container(request).await.map_err(text)?;

    let request = proto::StopContainerRequest { container_id: container.clone(), timeout: 0 };
    caller.runtime.stop_container(request).await.map_err(text)?;
    let request = proto::RemovePodSandboxRequest { pod_sandbox_id: sandbox.clone() };
    caller.runtime.remove_pod_sandbox(request).await.map_err(text)?;

    let names = HashMap::from([(sandbox.as_str(), "sandbox"), (container.as_str(), "main")]);
    let mut seen = Vec::new();
    while seen.last() != Some(&("sandbox", ContainerDeletedEvent)) {
        let event = tokio::time::timeout(Duration::from_secs(20), events.message()).await;
        let event = event.map_err(|_| Failed::from(format!("no more events after {seen:?}")))?.map_err(text)?;
        let event = event.ok_or("the events ended")?;
        if let Some(name) = names.get(event.container_id.as_str()).copied() {
            seen.push((name, event.container_event_type()));
        }
    }
    let of = |wanted: &str| seen.iter().filter(|(name, _)| *name == wanted).map(|(_, kind)| *kind).collect::<Vec<_>>();
    let life = [ContainerStartedEvent, ContainerStoppedEvent, ContainerDeletedEvent];
    assert_eq!((of("main"), of("sandbox")), (life.to_vec(), life.to_vec()), "{seen:?}");
    Ok(())
}
