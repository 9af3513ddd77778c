//! The rows, by type.

use super::ListType::{self, Atomic, AtomicMap, Map, Set, Unset};
use super::{Row, Semantics};

/// Fields that are newer than the reference the table is checked against.
#[cfg(test)]
pub(super) const NEWER: &[&str] = &[];

const NAME: &[&str] = &["name"];
const KIND: &[&str] = &["type"];

const fn list(list_type: ListType) -> Semantics {
    Semantics { list_type, merge_key: None, strategy: None }
}

/// A keyed list whose apply key is also its merge key.
const fn keyed(keys: &'static [&'static str]) -> Semantics {
    merged(keys, keys[0])
}

/// A keyed list with a merge key of its own.
const fn merged(keys: &'static [&'static str], merge_key: &'static str) -> Semantics {
    Semantics { list_type: Map(keys), merge_key: Some(merge_key), strategy: Some("merge") }
}

const fn strategy(list_type: ListType, merge_key: Option<&'static str>, strategy: &'static str) -> Semantics {
    Semantics { list_type, merge_key, strategy: Some(strategy) }
}

pub(super) fn rows() -> impl Iterator<Item = Row> {
    let atomic_lists = ATOMIC_LISTS.iter().flat_map(|(t, fields)| fields.iter().map(|f| (*t, *f, list(Atomic))));
    let atomic_types = ATOMIC_TYPES.iter().map(|t| (*t, "", list(AtomicMap)));
    OTHERS.iter().copied().chain(atomic_lists).chain(atomic_types)
}

/// Types that are replaced as a whole.
const ATOMIC_TYPES: &[&str] = &[
    "core.v1.ConfigMapKeySelector",
    "core.v1.EndpointAddress",
    "core.v1.EndpointPort",
    "core.v1.FileKeySelector",
    "core.v1.LocalObjectReference",
    "core.v1.NodeSelector",
    "core.v1.NodeSelectorTerm",
    "core.v1.ObjectFieldSelector",
    "core.v1.ObjectReference",
    "core.v1.ResourceFieldSelector",
    "core.v1.ScopeSelector",
    "core.v1.SecretKeySelector",
    "core.v1.SecretReference",
    "core.v1.TopologySelectorTerm",
    "core.v1.TypedLocalObjectReference",
    "discovery.v1.EndpointPort",
    "rbac.v1.RoleRef",
    "rbac.v1.Subject",
    "meta.v1.LabelSelector",
    "networking.v1.ServiceBackendPort",
];

/// Lists that are replaced as a whole.
const ATOMIC_LISTS: &[(&str, &[&str])] = &[
    ("authentication.v1.TokenRequestSpec", &["audiences"]),
    ("authentication.v1.TokenReviewSpec", &["audiences"]),
    ("authentication.v1.TokenReviewStatus", &["audiences"]),
    ("authentication.v1.UserInfo", &["groups"]),
    ("authorization.v1.NonResourceRule", &["nonResourceURLs", "verbs"]),
    ("authorization.v1.ResourceRule", &["apiGroups", "resourceNames", "resources", "verbs"]),
    ("authorization.v1.SubjectAccessReviewSpec", &["groups"]),
    ("authorization.v1.SubjectRulesReviewStatus", &["nonResourceRules", "resourceRules"]),
    ("authorization.v1.FieldSelectorAttributes", &["requirements"]),
    ("authorization.v1.LabelSelectorAttributes", &["requirements"]),
    ("autoscaling.v2.HPAScalingRules", &["policies"]),
    ("autoscaling.v2.HorizontalPodAutoscalerSpec", &["metrics"]),
    ("autoscaling.v2.HorizontalPodAutoscalerStatus", &["currentMetrics"]),
    ("batch.v1.CronJobStatus", &["active"]),
    ("batch.v1.PodFailurePolicy", &["rules"]),
    ("batch.v1.PodFailurePolicyRule", &["onPodConditions"]),
    ("batch.v1.SuccessPolicy", &["rules"]),
    ("certificates.v1.CertificateSigningRequestSpec", &["groups", "request", "usages"]),
    ("core.v1.Capabilities", &["add", "drop"]),
    ("core.v1.CephFSPersistentVolumeSource", &["monitors"]),
    ("core.v1.CephFSVolumeSource", &["monitors"]),
    ("core.v1.ConfigMapProjection", &["items"]),
    ("core.v1.ConfigMapVolumeSource", &["items"]),
    ("core.v1.Container", &["args", "command", "envFrom"]),
    ("core.v1.EphemeralContainer", &["args", "command", "envFrom"]),
    ("core.v1.ContainerImage", &["names"]),
    ("core.v1.DownwardAPIProjection", &["items"]),
    ("core.v1.DownwardAPIVolumeSource", &["items"]),
    ("core.v1.EndpointSubset", &["addresses", "notReadyAddresses", "ports"]),
    ("core.v1.Endpoints", &["subsets"]),
    ("core.v1.ExecAction", &["command"]),
    ("core.v1.FCVolumeSource", &["targetWWNs", "wwids"]),
    ("core.v1.HTTPGetAction", &["httpHeaders"]),
    ("core.v1.HostAlias", &["hostnames"]),
    ("core.v1.ISCSIPersistentVolumeSource", &["portals"]),
    ("core.v1.ISCSIVolumeSource", &["portals"]),
    ("core.v1.LimitRangeSpec", &["limits"]),
    ("core.v1.LoadBalancerIngress", &["ports"]),
    ("core.v1.LoadBalancerStatus", &["ingress"]),
    ("core.v1.NamespaceSpec", &["finalizers"]),
    ("core.v1.NodeAffinity", &["preferredDuringSchedulingIgnoredDuringExecution"]),
    ("core.v1.NodeSelector", &["nodeSelectorTerms"]),
    ("core.v1.NodeSelectorRequirement", &["values"]),
    ("core.v1.NodeSelectorTerm", &["matchExpressions", "matchFields"]),
    ("core.v1.NodeSpec", &["taints"]),
    ("core.v1.NodeStatus", &["images", "runtimeHandlers", "volumesAttached", "volumesInUse"]),
    ("core.v1.PersistentVolumeClaimSpec", &["accessModes"]),
    ("core.v1.PersistentVolumeClaimStatus", &["accessModes"]),
    ("core.v1.PersistentVolumeSpec", &["accessModes", "mountOptions"]),
    (
        "core.v1.PodAffinity",
        &["preferredDuringSchedulingIgnoredDuringExecution", "requiredDuringSchedulingIgnoredDuringExecution"],
    ),
    (
        "core.v1.PodAntiAffinity",
        &["preferredDuringSchedulingIgnoredDuringExecution", "requiredDuringSchedulingIgnoredDuringExecution"],
    ),
    ("core.v1.PodAffinityTerm", &["matchLabelKeys", "mismatchLabelKeys", "namespaces"]),
    ("core.v1.PodDNSConfig", &["nameservers", "options", "searches"]),
    ("core.v1.PodSecurityContext", &["supplementalGroups", "sysctls"]),
    ("core.v1.PodSpec", &["readinessGates", "tolerations"]),
    ("core.v1.PodStatus", &["containerStatuses", "ephemeralContainerStatuses", "initContainerStatuses"]),
    ("core.v1.ProjectedVolumeSource", &["sources"]),
    ("core.v1.RBDPersistentVolumeSource", &["monitors"]),
    ("core.v1.RBDVolumeSource", &["monitors"]),
    ("core.v1.ResourceQuotaSpec", &["scopes"]),
    ("core.v1.ScopeSelector", &["matchExpressions"]),
    ("core.v1.ScopedResourceSelectorRequirement", &["values"]),
    ("core.v1.SecretProjection", &["items"]),
    ("core.v1.SecretVolumeSource", &["items"]),
    ("core.v1.ServiceAccount", &["imagePullSecrets"]),
    ("core.v1.ServiceSpec", &["clusterIPs", "externalIPs", "ipFamilies", "loadBalancerSourceRanges"]),
    ("core.v1.TopologySelectorLabelRequirement", &["values"]),
    ("core.v1.TopologySelectorTerm", &["matchLabelExpressions"]),
    ("core.v1.TopologySpreadConstraint", &["matchLabelKeys"]),
    ("discovery.v1.EndpointHints", &["forNodes", "forZones"]),
    ("discovery.v1.EndpointSlice", &["endpoints", "ports"]),
    ("networking.v1.HTTPIngressRuleValue", &["paths"]),
    ("networking.v1.IPBlock", &["except"]),
    ("networking.v1.IngressLoadBalancerIngress", &["ports"]),
    ("networking.v1.IngressLoadBalancerStatus", &["ingress"]),
    ("networking.v1.IngressSpec", &["rules", "tls"]),
    ("networking.v1.IngressTLS", &["hosts"]),
    ("networking.v1.NetworkPolicyEgressRule", &["ports", "to"]),
    ("networking.v1.NetworkPolicyIngressRule", &["from", "ports"]),
    ("networking.v1.NetworkPolicySpec", &["egress", "ingress", "policyTypes"]),
    ("node.v1.Scheduling", &["tolerations"]),
    ("rbac.v1.AggregationRule", &["clusterRoleSelectors"]),
    ("rbac.v1.ClusterRole", &["rules"]),
    ("rbac.v1.ClusterRoleBinding", &["subjects"]),
    ("rbac.v1.PolicyRule", &["apiGroups", "nonResourceURLs", "resourceNames", "resources", "verbs"]),
    ("rbac.v1.Role", &["rules"]),
    ("rbac.v1.RoleBinding", &["subjects"]),
    ("storage.v1.StorageClass", &["allowedTopologies", "mountOptions"]),
    ("meta.v1.APIGroup", &["serverAddressByClientCIDRs", "versions"]),
    ("meta.v1.APIGroupList", &["groups"]),
    ("meta.v1.APIResource", &["categories", "shortNames"]),
    ("meta.v1.APIResourceList", &["resources"]),
    ("meta.v1.DeleteOptions", &["dryRun"]),
    ("meta.v1.LabelSelector", &["matchExpressions"]),
    ("meta.v1.LabelSelectorRequirement", &["values"]),
    ("meta.v1.ObjectMeta", &["managedFields"]),
    ("meta.v1.StatusDetails", &["causes"]),
    ("meta.v1.FieldSelectorRequirement", &["values"]),
];

/// Conditions keyed by type, and every list with a rule of its own.
const OTHERS: &[Row] = &[
    ("apps.v1.DaemonSetStatus", "conditions", keyed(KIND)),
    ("apps.v1.DeploymentSpec", "strategy", strategy(Unset, None, "retainKeys")),
    ("apps.v1.DeploymentStatus", "conditions", keyed(KIND)),
    ("apps.v1.ReplicaSetStatus", "conditions", keyed(KIND)),
    ("apps.v1.StatefulSetSpec", "volumeClaimTemplates", list(Atomic)),
    ("apps.v1.StatefulSetStatus", "conditions", keyed(KIND)),
    ("autoscaling.v2.HorizontalPodAutoscalerStatus", "conditions", keyed(KIND)),
    ("batch.v1.JobStatus", "conditions", strategy(Atomic, Some("type"), "merge")),
    ("batch.v1.PodFailurePolicyOnExitCodesRequirement", "values", list(Set)),
    ("batch.v1.UncountedTerminatedPods", "failed", list(Set)),
    ("batch.v1.UncountedTerminatedPods", "succeeded", list(Set)),
    ("certificates.v1.CertificateSigningRequestStatus", "certificate", list(Atomic)),
    ("certificates.v1.CertificateSigningRequestStatus", "conditions", list(Map(KIND))),
    ("core.v1.Container", "env", keyed(NAME)),
    ("core.v1.Container", "ports", merged(&["containerPort", "protocol"], "containerPort")),
    ("core.v1.Container", "resizePolicy", list(Atomic)),
    ("core.v1.Container", "volumeDevices", keyed(&["devicePath"])),
    ("core.v1.Container", "volumeMounts", keyed(&["mountPath"])),
    ("core.v1.ContainerStatus", "allocatedResourcesStatus", keyed(NAME)),
    ("core.v1.ContainerStatus", "volumeMounts", keyed(&["mountPath"])),
    ("core.v1.LinuxContainerUser", "supplementalGroups", list(Atomic)),
    ("core.v1.EphemeralContainer", "env", keyed(NAME)),
    ("core.v1.EphemeralContainer", "ports", merged(&["containerPort", "protocol"], "containerPort")),
    ("core.v1.EphemeralContainer", "resizePolicy", list(Atomic)),
    ("core.v1.EphemeralContainer", "volumeDevices", keyed(&["devicePath"])),
    ("core.v1.EphemeralContainer", "volumeMounts", keyed(&["mountPath"])),
    ("core.v1.NamespaceStatus", "conditions", keyed(KIND)),
    ("core.v1.NodeSpec", "podCIDRs", strategy(Set, None, "merge")),
    ("core.v1.NodeStatus", "addresses", keyed(KIND)),
    ("core.v1.NodeStatus", "conditions", keyed(KIND)),
    ("core.v1.PersistentVolumeClaimStatus", "conditions", keyed(KIND)),
    ("core.v1.PodSpec", "containers", keyed(NAME)),
    ("core.v1.PodSpec", "ephemeralContainers", keyed(NAME)),
    ("core.v1.PodSpec", "hostAliases", keyed(&["ip"])),
    ("core.v1.PodSpec", "imagePullSecrets", keyed(NAME)),
    ("core.v1.PodSpec", "initContainers", keyed(NAME)),
    ("core.v1.PodSpec", "nodeSelector", list(AtomicMap)),
    ("core.v1.PodSpec", "resourceClaims", strategy(Map(NAME), Some("name"), "merge,retainKeys")),
    ("core.v1.PodSpec", "schedulingGates", keyed(NAME)),
    ("core.v1.PodSpec", "topologySpreadConstraints", merged(&["topologyKey", "whenUnsatisfiable"], "topologyKey")),
    ("core.v1.PodSpec", "volumes", strategy(Map(NAME), Some("name"), "merge,retainKeys")),
    ("core.v1.PodStatus", "conditions", keyed(KIND)),
    ("core.v1.PodStatus", "hostIPs", strategy(Atomic, Some("ip"), "merge")),
    ("core.v1.PodStatus", "podIPs", keyed(&["ip"])),
    ("core.v1.PodStatus", "resourceClaimStatuses", strategy(Map(NAME), Some("name"), "merge,retainKeys")),
    ("core.v1.ReplicationControllerSpec", "selector", list(AtomicMap)),
    ("core.v1.ReplicationControllerStatus", "conditions", keyed(KIND)),
    ("core.v1.ResourceStatus", "resources", list(Map(&["resourceID"]))),
    ("core.v1.ResourceRequirements", "claims", list(Map(NAME))),
    ("core.v1.ServiceAccount", "secrets", keyed(NAME)),
    ("core.v1.ServiceSpec", "ports", merged(&["port", "protocol"], "port")),
    ("core.v1.ServiceSpec", "selector", list(AtomicMap)),
    ("core.v1.ServiceStatus", "conditions", keyed(KIND)),
    ("discovery.v1.Endpoint", "addresses", list(Set)),
    ("policy.v1.PodDisruptionBudgetSpec", "selector", strategy(Unset, None, "replace")),
    ("policy.v1.PodDisruptionBudgetStatus", "conditions", keyed(KIND)),
    ("node.v1.Scheduling", "nodeSelector", list(AtomicMap)),
    ("meta.v1.Status", "details", list(Atomic)),
    ("meta.v1.ObjectMeta", "finalizers", strategy(Set, None, "merge")),
    ("meta.v1.ObjectMeta", "ownerReferences", keyed(&["uid"])),
    ("meta.v1.OwnerReference", "", list(AtomicMap)),
];
