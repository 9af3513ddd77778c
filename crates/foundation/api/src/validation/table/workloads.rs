//! Pods and what makes them.

use super::{check, with_template};

#[test]
fn pods() {
    check(
        "v1/pods",
        r#"{"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 80}],
            "livenessProbe": {"httpGet": {"port": 80}}, "resources": {"requests": {"cpu": "1"}, "limits": {"cpu": "2"}}}],
            "volumes": [{"name": "v", "configMap": {"name": "m"}}], "tolerations": [{"key": "k", "operator": "Exists"}]}}"#,
        &[
            ("/spec/containers/0/image", "\"\"", "spec.containers[0].image: Required value"),
            ("/spec/containers/0/imagePullPolicy", "\"Never\"", ""),
            (
                "/spec/containers/0/imagePullPolicy",
                "\"Maybe\"",
                "spec.containers[0].imagePullPolicy: Unsupported value: \"Maybe\": supported values: \"Always\", \"IfNotPresent\", \"Never\"",
            ),
            (
                "/spec/containers/0/ports/0/containerPort",
                "70000",
                "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
            ),
            (
                "/spec/containers/0/livenessProbe/httpGet",
                "null",
                "spec.containers[0].livenessProbe: Required value: must specify a handler type",
            ),
            (
                "/spec/containers/0/livenessProbe/exec",
                "{\"command\": [\"x\"]}",
                "spec.containers[0].livenessProbe.httpGet: Forbidden: may not specify more than 1 handler type",
            ),
            (
                "/spec/containers/0/livenessProbe/successThreshold",
                "2",
                "spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1",
            ),
            (
                "/spec/containers/0/resources/requests/cpu",
                "\"3\"",
                "spec.containers[0].resources.requests: Invalid value: \"3\": must be less than or equal to cpu limit of 2",
            ),
            (
                "/spec/containers/0/resources/limits/gpu",
                "1",
                "spec.containers[0].resources.limits: Invalid value: \"gpu\": must be a standard resource for containers",
            ),
            (
                "/spec/containers/0/env",
                "[{\"name\": \"A\", \"valueFrom\": {}}]",
                "spec.containers[0].env[0].valueFrom: Invalid value: \"\": must specify one of",
            ),
            (
                "/spec/containers/0/env",
                "[{\"name\": \"A\", \"valueFrom\": {\"fieldRef\": {\"fieldPath\": \"metadata.labels['x']\"}}}]",
                "",
            ),
            (
                "/spec/volumes/0/secret",
                "{\"secretName\": \"s\"}",
                "spec.volumes[0].secret: Forbidden: may not specify more than 1 volume type",
            ),
            ("/spec/volumes/0/configMap/name", "null", "spec.volumes[0].configMap.name: Required value"),
            (
                "/spec/restartPolicy",
                "\"Sometimes\"",
                "spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"OnFailure\", \"Never\"",
            ),
            (
                "/spec/dnsPolicy",
                "\"None\"",
                "spec.dnsConfig: Required value: must provide `dnsConfig` when `dnsPolicy` is None",
            ),
            (
                "/spec/tolerations/0/value",
                "\"x\"",
                "spec.tolerations[0].operator: Invalid value: \"x\": value must be empty when `operator` is 'Exists'",
            ),
            ("/spec/tolerations/0/effect", "\"Go\"", "spec.tolerations[0].effect: Unsupported value: \"Go\""),
            (
                "/spec/activeDeadlineSeconds",
                "0",
                "spec.activeDeadlineSeconds: Invalid value: 0: must be between 1 and 2147483647, inclusive",
            ),
            (
                "/spec/topologySpreadConstraints",
                "[{\"maxSkew\": 0, \"topologyKey\": \"z\", \"whenUnsatisfiable\": \"DoNotSchedule\"}]",
                "spec.topologySpreadConstraints[0].maxSkew: Invalid value: 0: must be greater than zero",
            ),
            (
                "/spec/affinity",
                "{\"podAffinity\": {\"requiredDuringSchedulingIgnoredDuringExecution\": [{}]}}",
                "spec.affinity.podAffinity.requiredDuringSchedulingIgnoredDuringExecution[0].topologyKey: Required value: can not be empty",
            ),
            (
                "/spec/ephemeralContainers",
                "[{\"name\": \"e\", \"image\": \"i\"}]",
                "spec.ephemeralContainers: Forbidden: cannot be set on create",
            ),
            (
                "/spec/initContainers",
                "[{\"name\": \"j\", \"image\": \"i\", \"livenessProbe\": {\"tcpSocket\": {\"port\": 1}}}]",
                "spec.initContainers[0].livenessProbe: Forbidden: may not be set for init containers without restartPolicy=Always",
            ),
            (
                "/spec/initContainers",
                "[{\"name\": \"j\", \"image\": \"i\", \"restartPolicy\": \"Always\", \"livenessProbe\": {\"tcpSocket\": {\"port\": 1}}}]",
                "",
            ),
        ],
        &[
            ("/spec/containers/0/image", "\"j\"", ""),
            (
                "/spec/containers/0/command",
                "[\"x\"]",
                "spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`",
            ),
            (
                "/spec/tolerations",
                "[]",
                "spec.tolerations: Forbidden: existing toleration can not be modified except its tolerationSeconds",
            ),
            (
                "/spec/schedulingGates",
                "[{\"name\": \"a/b\"}]",
                "spec.schedulingGates: Forbidden: only deletion is allowed, but found new scheduling gate 'a/b'",
            ),
        ],
    );
}

#[test]
fn deployments() {
    check(
        "apps/v1/deployments",
        &with_template(
            r#"{"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": TEMPLATE}}"#,
        ),
        &[
            ("/spec/replicas", "-1", "spec.replicas: Invalid value: -1: must be greater than or equal to 0"),
            ("/spec/selector", "null", "spec.selector: Required value"),
            ("/spec/selector", "{}", "spec.selector: Invalid value: {}: empty selector is invalid for deployment"),
            (
                "/spec/selector/matchLabels/x",
                "\"y\"",
                "spec.template.metadata.labels: Invalid value: {\"a\":\"b\"}: `selector` does not match template `labels`",
            ),
            (
                "/spec/strategy",
                "{\"type\": \"Recreate\", \"rollingUpdate\": {}}",
                "spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'",
            ),
            (
                "/spec/strategy",
                "{\"rollingUpdate\": {\"maxSurge\": 0, \"maxUnavailable\": 0}}",
                "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: 0: may not be 0 when `maxSurge` is 0",
            ),
            (
                "/spec/strategy",
                "{\"rollingUpdate\": {\"maxUnavailable\": \"101%\"}}",
                "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: \"101%\": must not be greater than 100%",
            ),
            (
                "/spec/progressDeadlineSeconds",
                "0",
                "spec.progressDeadlineSeconds: Invalid value: 0: must be greater than minReadySeconds",
            ),
            (
                "/spec/template/spec/restartPolicy",
                "\"Never\"",
                "spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\"",
            ),
            (
                "/spec/template/spec/activeDeadlineSeconds",
                "5",
                "spec.template.spec.activeDeadlineSeconds: Forbidden: activeDeadlineSeconds in ReplicaSet is not Supported",
            ),
        ],
        &[
            ("/spec/replicas", "4", ""),
            (
                "/spec/selector/matchLabels",
                "{\"c\": \"d\"}",
                "spec.selector: Invalid value: {\"matchLabels\":{\"c\":\"d\"}}: field is immutable",
            ),
        ],
    );
    check(
        "apps/v1/replicasets",
        &with_template(
            r#"{"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": TEMPLATE}}"#,
        ),
        &[(
            "/spec/minReadySeconds",
            "-2",
            "spec.minReadySeconds: Invalid value: -2: must be greater than or equal to 0",
        )],
        &[(
            "/spec/selector/matchLabels",
            "{\"c\": \"d\"}",
            "spec.selector: Invalid value: {\"matchLabels\":{\"c\":\"d\"}}: field is immutable",
        )],
    );
    check(
        "v1/replicationcontrollers",
        &with_template(r#"{"metadata": {"name": "d"}, "spec": {"template": TEMPLATE}}"#),
        &[
            (
                "/spec/selector",
                "{\"x\": \"y\"}",
                "spec.template.metadata.labels: Invalid value: {\"a\":\"b\"}: `selector` does not match template `labels`",
            ),
            ("/spec/template", "null", "spec.selector: Required value"),
        ],
        &[],
    );
}

#[test]
fn stateful_and_daemon_sets() {
    check(
        "apps/v1/statefulsets",
        &with_template(
            r#"{"metadata": {"name": "s"}, "spec": {"serviceName": "s", "selector": {"matchLabels": {"a": "b"}},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i",
                "volumeMounts": [{"name": "data", "mountPath": "/d"}]}]}},
            "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}]}}"#,
        ),
        &[
            ("/metadata/name", "\"a.b\"", "metadata.name: Invalid value: \"a.b\": must not contain dots"),
            (
                "/spec/podManagementPolicy",
                "\"Wild\"",
                "spec.podManagementPolicy: Invalid value: \"Wild\": must be 'OrderedReady' or 'Parallel'",
            ),
            (
                "/spec/updateStrategy",
                "{\"type\": \"OnDelete\", \"rollingUpdate\": {\"partition\": 1}}",
                "spec.updateStrategy.rollingUpdate: Invalid value: {\"partition\":1}: only allowed for updateStrategy 'RollingUpdate'",
            ),
            (
                "/spec/persistentVolumeClaimRetentionPolicy",
                "{\"whenDeleted\": \"Burn\"}",
                "spec.persistentVolumeClaimRetentionPolicy.whenDeleted: Unsupported value: \"Burn\": supported values: \"Retain\", \"Delete\"",
            ),
            (
                "/spec/template/spec/containers/0/volumeMounts/0/name",
                "\"other\"",
                "spec.template.spec.containers[0].volumeMounts[0].name: Not found: \"other\"",
            ),
        ],
        &[
            ("/spec/replicas", "3", ""),
            ("/spec/updateStrategy/rollingUpdate/partition", "1", ""),
            (
                "/spec/serviceName",
                "\"t\"",
                "spec: Forbidden: updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden",
            ),
            (
                "/spec/volumeClaimTemplates/0/spec/resources/requests/storage",
                "\"2Gi\"",
                "spec: Forbidden: updates to statefulset spec",
            ),
        ],
    );
    check(
        "apps/v1/daemonsets",
        &with_template(
            r#"{"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": TEMPLATE}}"#,
        ),
        &[
            (
                "/spec/updateStrategy",
                "{\"rollingUpdate\": {\"maxSurge\": 1}}",
                "spec.updateStrategy.rollingUpdate.maxSurge: Invalid value: 1: may not be set when maxUnavailable is non-zero",
            ),
            (
                "/spec/updateStrategy",
                "{\"rollingUpdate\": {\"maxUnavailable\": 0}}",
                "spec.updateStrategy.rollingUpdate.maxUnavailable: Required value: cannot be 0 when maxSurge is 0",
            ),
        ],
        &[(
            "/spec/selector/matchLabels",
            "{\"c\": \"d\"}",
            "spec.selector: Invalid value: {\"matchLabels\":{\"c\":\"d\"}}: field is immutable",
        )],
    );
    check(
        "apps/v1/controllerrevisions",
        r#"{"metadata": {"name": "r"}, "data": {"a": 1}, "revision": 1}"#,
        &[
            ("/data", "null", "data: Required value: data is mandatory"),
            ("/revision", "-1", "revision: Invalid value: -1: must be greater than or equal to 0"),
        ],
        &[("/revision", "2", ""), ("/data/a", "2", "data: Invalid value: {\"a\":2}: field is immutable")],
    );
}

const JOB: &str = r#"{"metadata": {"name": "j"}, "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}}}"#;

#[test]
fn jobs() {
    check(
        "batch/v1/jobs",
        JOB,
        &[
            ("/spec/parallelism", "-1", "spec.parallelism: Invalid value: -1: must be greater than or equal to 0"),
            (
                "/spec/template/spec/restartPolicy",
                "null",
                "spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\"",
            ),
            (
                "/spec/completionMode",
                "\"Odd\"",
                "spec.completionMode: Unsupported value: \"Odd\": supported values: \"NonIndexed\", \"Indexed\"",
            ),
            (
                "/spec/backoffLimitPerIndex",
                "1",
                "spec.backoffLimitPerIndex: Invalid value: 1: requires indexed completion mode",
            ),
            (
                "/spec/podFailurePolicy",
                "{\"rules\": [{\"action\": \"Ignore\"}]}",
                "spec.podFailurePolicy.rules[0]: Invalid value: specifying one of OnExitCodes and OnPodConditions is required",
            ),
            (
                "/spec/podFailurePolicy",
                "{\"rules\": [{\"action\": \"FailJob\", \"onExitCodes\": {\"operator\": \"In\", \"values\": [2, 1]}}]}",
                "spec.podFailurePolicy.rules[0].onExitCodes.values: Invalid value: [2,1]: must be ordered",
            ),
            (
                "/spec/podReplacementPolicy",
                "\"Never\"",
                "spec.podReplacementPolicy: Unsupported value: \"Never\": supported values: \"Failed\", \"TerminatingOrFailed\"",
            ),
            (
                "/spec/managedBy",
                "\"me\"",
                "spec.managedBy: Invalid value: \"me\": must be a domain-prefixed path (such as \"acme.io/foo\")",
            ),
            ("/spec/manualSelector", "true", "spec.selector: Required value"),
        ],
        &[
            ("/spec/parallelism", "3", ""),
            ("/spec/suspend", "true", ""),
            ("/spec/completions", "5", "spec.completions: Invalid value: 5: field is immutable"),
            ("/spec/template/spec/containers/0/image", "\"k\"", "spec.template: Invalid value: "),
            (
                "/spec/selector/matchLabels",
                "{\"x\": \"y\"}",
                "spec.selector: Invalid value: {\"matchLabels\":{\"x\":\"y\"}}: field is immutable",
            ),
        ],
    );
    check(
        "batch/v1/cronjobs",
        r#"{"metadata": {"name": "c"}, "spec": {"schedule": "*/5 * * * *", "jobTemplate": {"spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}}}}}"#,
        &[
            (
                "/metadata/name",
                "\"a123456789b123456789c123456789d123456789e123456789f123\"",
                "metadata.name: Invalid value: \"a123456789b123456789c123456789d123456789e123456789f123\": must be no more than 52 characters",
            ),
            ("/spec/schedule", "\"\"", "spec.schedule: Required value"),
            (
                "/spec/schedule",
                "\"61 * * * *\"",
                "spec.schedule: Invalid value: \"61 * * * *\": end of range (61) above maximum (59): 61",
            ),
            (
                "/spec/schedule",
                "\"TZ=UTC 0 * * * *\"",
                "spec.schedule: Invalid value: \"TZ=UTC 0 * * * *\": cannot use TZ or CRON_TZ in schedule, use timeZone field instead",
            ),
            (
                "/spec/timeZone",
                "\"Mars/Base\"",
                "spec.timeZone: Invalid value: \"Mars/Base\": unknown time zone Mars/Base",
            ),
            (
                "/spec/concurrencyPolicy",
                "\"Maybe\"",
                "spec.concurrencyPolicy: Unsupported value: \"Maybe\": supported values: \"Allow\", \"Forbid\", \"Replace\"",
            ),
            (
                "/spec/jobTemplate/spec/selector",
                "{}",
                "spec.jobTemplate.spec.selector: Invalid value: {}: `selector` will be auto-generated",
            ),
            (
                "/spec/failedJobsHistoryLimit",
                "-1",
                "spec.failedJobsHistoryLimit: Invalid value: -1: must be greater than or equal to 0",
            ),
        ],
        &[("/spec/schedule", "\"@daily\"", "")],
    );
}

#[test]
fn autoscalers_and_budgets() {
    let spec = r#"{"metadata": {"name": "h"}, "spec": {"maxReplicas": 3, "scaleTargetRef": {"kind": "Deployment", "name": "d"}}}"#;
    check(
        "autoscaling/v2/horizontalpodautoscalers",
        spec,
        &[
            ("/spec/maxReplicas", "0", "spec.maxReplicas: Invalid value: 0: must be greater than 0"),
            ("/spec/minReplicas", "0", "spec.minReplicas: Invalid value: 0: must be greater than or equal to 1"),
            (
                "/spec/minReplicas",
                "4",
                "spec.maxReplicas: Invalid value: 3: must be greater than or equal to `minReplicas`",
            ),
            ("/spec/scaleTargetRef/name", "\"\"", "spec.scaleTargetRef.name: Required value"),
            (
                "/spec/metrics",
                "[{\"type\": \"Pods\"}]",
                "spec.metrics[0].pods: Required value: must populate information for the given metric source",
            ),
            (
                "/spec/metrics",
                "[{\"type\": \"Resource\", \"resource\": {\"name\": \"cpu\", \"target\": {\"type\": \"Utilization\"}}}]",
                "spec.metrics[0].resource.target.averageUtilization: Required value: must set either a target raw value or a target utilization",
            ),
            (
                "/spec/behavior",
                "{\"scaleUp\": {\"stabilizationWindowSeconds\": 5000}}",
                "spec.behavior.scaleUp.stabilizationWindowSeconds: Invalid value: 5000: must be less than or equal to 3600",
            ),
            (
                "/spec/behavior",
                "{\"scaleDown\": {\"policies\": [{\"type\": \"Pods\", \"value\": 0, \"periodSeconds\": 5}]}}",
                "spec.behavior.scaleDown.policies[0].value: Invalid value: 0: must be greater than zero",
            ),
        ],
        &[("/spec/maxReplicas", "5", "")],
    );
    check(
        "autoscaling/v1/horizontalpodautoscalers",
        spec,
        &[(
            "/spec/targetCPUUtilizationPercentage",
            "0",
            "spec.targetCPUUtilizationPercentage: Invalid value: 0: must be greater than 0",
        )],
        &[],
    );
    check(
        "policy/v1/poddisruptionbudgets",
        r#"{"metadata": {"name": "b"}, "spec": {"minAvailable": "50%", "selector": {"matchLabels": {"a": "b"}}}}"#,
        &[
            ("/spec/maxUnavailable", "1", "spec: Invalid value: "),
            (
                "/spec/minAvailable",
                "\"120%\"",
                "spec.minAvailable: Invalid value: \"120%\": must not be greater than 100%",
            ),
            (
                "/spec/unhealthyPodEvictionPolicy",
                "\"Never\"",
                "spec.unhealthyPodEvictionPolicy: Unsupported value: \"Never\": supported values: \"AlwaysAllow\", \"IfHealthyBudget\"",
            ),
            (
                "/spec/selector/matchExpressions",
                "[{\"key\": \"k\", \"operator\": \"In\"}]",
                "spec.selector.matchExpressions[0].values: Required value: must be specified when `operator` is 'In' or 'NotIn'",
            ),
        ],
        &[("/spec/minAvailable", "2", "")],
    );
}
