"""Breaks a copy of the manifests in one way after the other and asks whether the rule that is there for it speaks up.

`make k8s-mutants` prints `caught/total` and fails below all of them: a rule that no mutant shows to work is no rule.
"""

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tools.lint import __main__ as lint
from tools.lint.inventory import Inventory
from tools.lint.manifests import (
    IGNORED,
    ROOT,
    Finding,
    Manifest,
    RenderError,
    includes,
    is_remote,
    read,
    render,
    render_all,
)
from tools.lint.reachability import find_unreviewed
from tools.lint.rules import RULES, find_broken
from tools.lint.schemas import Schemas
from tools.lint.service import LIMITS
from tools.lint.tree import TREE, Tree, find_misplaced

OTHERS = ("schema", "stable-version", "duplicate", "immutable", "site", "compose", "reachability", "render")
"""What is checked beside the two lists of rules; `render`: kubectl itself refuses."""


class Mutant(NamedTuple):
    """One way to break the manifests: in `file`, `old` becomes `new`; an empty `old` makes a file or adds to one."""

    rule: str
    file: str
    old: str
    new: str
    original: str = ""
    """A defect of the original Go app's manifests that this one repeats, as people would call it."""


BASE, GATEWAY, POLICIES = "base", "components/gateway", "components/network-policies"
DEPLOYMENT, CLUSTER = "base/deployment.yaml", "components/database/cluster.yaml"
INSTANCES = "components/database/service.yaml"
ROUTE, EDGE, HPA = "base/httproute-goals.yaml", "components/gateway/gateway.yaml", "base/horizontalpodautoscaler.yaml"
# part azure
ISSUER = "components/certificates/letsencrypt/clusterissuer-letsencrypt-staging.yaml"
# end azure
CODE = "the service's code"
"""In the place of a file: `old` is a limit of `lint.service.Service`, `new` its value."""

# part argocd
APPS, HOOK, SERVER = "argocd/apps", "argocd/goals/job-migrate.yaml", "argocd/server"
# end argocd
CONTAINER = "          securityContext: &restricted\n"
POD = "      securityContext:\n        runAsNonRoot: true\n        runAsUser: 10001\n"
SERVES = "          args: [serve]\n"
READINESS = """          readinessProbe:
            httpGet: {path: /readyz, port: ops}
            periodSeconds: 2
            timeoutSeconds: 2
            failureThreshold: 2
"""
CA = "            items: [{key: ca.crt, path: ca.crt}]\n"
GRANT = """apiVersion: gateway.networking.k8s.io/v1
kind: ReferenceGrant
metadata: {name: goals, namespace: goals}
spec:
  from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: edge}]
  to: [{group: "", kind: Service, name: goals}]
"""
HAND_MADE = """apiVersion: v1
kind: Secret
metadata: {name: goals-credentials, namespace: goals}
stringData: {password: goals}
"""
NGINX = "services:\n  goals: {{image: goals, stop_grace_period: {grace}}}\n  gateway: {{image: nginx, volumes: ['./nginx.conf:/etc/nginx/nginx.conf:ro']}}\n"
GOOD_COMPOSE = NGINX.format(grace="30s")
UPSTREAM = "upstream goals {{ server goals:8080; keepalive 32; {idle} }}\nproxy_read_timeout {wait};\n"
GOOD_NGINX = UPSTREAM.format(idle="keepalive_timeout 4s;", wait="20s")

# fmt: off
MUTANTS = (
    # Schemas and what kustomize refuses.
    Mutant("schema", "base/service.yaml", "targetPort: http", "targetPrt: http"),
    Mutant("schema", "base/service.yaml", "  namespace: goals\n", ""),
    Mutant("stable-version", ROUTE, "networking.k8s.io/v1\n", "networking.k8s.io/v1beta1\n", "beta versions of the Gateway API"),
    Mutant("render", "base/kustomization.yaml", "  - service.yaml\n", "  - service.yaml\n  - service.yaml\n"),
    # kustomize refuses a second object itself, but not in another version.
    Mutant("duplicate", ROUTE, "", "---\n" + (ROOT / ROUTE).read_text("utf-8").replace("io/v1\n", "io/v1beta1\n")),
    Mutant("conflict", "platform/namespaces/kustomization.yaml", "resources:\n", "resources:\n  - gateway.yaml\n", "one Gateway in two files"),
    # Routes and listeners.
    Mutant("parent", ROUTE, "      namespace: edge\n", "      namespace: nginx-gateway\n", "the Gateway sought in the controller's namespace"),
    Mutant("parent", ROUTE, "sectionName: https-goals", "sectionName: https"),
    Mutant("admission", EDGE, "kubernetes.io/metadata.name: goals", "kubernetes.io/metadata.name: default"),
    Mutant("admission", ROUTE, "sectionName: https-goals", "sectionName: http"),
    Mutant("section-name", EDGE, "          from: Same\n", "          from: All\n"),
    Mutant("plain-route", EDGE, "          from: Same\n", "          from: All\n"),
    Mutant("hostname", ROUTE, "hostnames: [goals.localhost]", "hostnames: [www.localhost]"),
    Mutant("redirect", "components/gateway/kustomization.yaml", "  - httproute-redirect.yaml\n", "", "no redirect to https"),
    Mutant("redirect", "components/gateway/httproute-redirect.yaml", "scheme: https", "scheme: http"),
    Mutant("redirect-hostnames", "components/gateway/httproute-redirect.yaml", "  hostnames: [", "  # ["),
    Mutant("graceful-stop", "components/gateway/nginxproxy.yaml", "nginx -s quit", "nginx -s stop"),
    Mutant("backend", ROUTE, "name: goals, port: 8080", "name: goals, port: 80"),
    Mutant("backend", ROUTE, "name: goals, port: 8080", "name: goal, port: 8080"),
    Mutant("backend-tls", "base/service.yaml", "port: 8080", "port: 443"),
    Mutant("grant", ROUTE, "kind: Service, name: goals", "kind: Service, namespace: edge, name: goals"),
    Mutant("unused-grant", ROUTE, "", "---\n" + GRANT, "a ReferenceGrant that nobody needs"),
    Mutant("listener-certificate", EDGE, "    cert-manager.io/cluster-issuer: private-ca\n", ""),
    Mutant("gateway-issuer", EDGE, "cluster-issuer: private-ca", "cluster-issuer: private"),
    Mutant("policy-overlap", ROUTE, "value: /}", "value: /api/v1/goals}"),
    Mutant("policy-overlap", "components/gateway/clientsettingspolicy-goals-writes.yaml", "    name: goals-writes\n  body", "    name: goals\n  body"),
    # References.
    Mutant("reference", HPA, "    name: goals\n  minReplicas", "    name: web\n  minReplicas"),
    Mutant("reference", "components/gateway/ratelimitpolicy.yaml", "namespace: goals", "namespace: edge"),
    Mutant("reference", "components/gateway/upstreamsettingspolicy.yaml", "name: goals}", "name: web}"),
    Mutant("reference", CLUSTER, "    name: postgresql\n", "    name: postgres\n"),
    Mutant("reference", "components/certificates/private-ca/certificate.yaml", "name: selfsigned}", "name: self-signed}"),
    Mutant("reference", "components/secrets/generated/externalsecret.yaml", "          name: grafana-admin", "          name: grafana"),
    Mutant("reference", EDGE, "gatewayClassName: nginx", "gatewayClassName: ngf"),
    Mutant("reference", DEPLOYMENT, "serviceAccountName: goals", "serviceAccountName: web"),
    Mutant("configuration", DEPLOYMENT, "secretKeyRef: {name: goals-db-app, key: dbname}", "secretKeyRef: {name: goals-db-app, key: database}"),
    Mutant("configuration", CLUSTER, "      dataChecksums: true\n", "      dataChecksums: true\n      secret: {name: goals-db-credentials}\n", "a Secret made by hand after the Cluster that needs it"),
    Mutant("configuration", DEPLOYMENT, "                name: goals\n", "                name: settings\n"),
    Mutant("configuration", "components/certificates/private-ca/clusterissuer-private-ca.yaml", "secretName: private-ca", "secretName: ca"),
    Mutant("private-key", DEPLOYMENT, CA, ""),
    Mutant("secret-in-git", "base/service.yaml", "", "---\n" + HAND_MADE, "passwords written by hand"),
    Mutant("default-namespace", "base/poddisruptionbudget.yaml", "namespace: goals", "namespace: default", "everything in default"),
    # Services, probes, settings.
    Mutant("service-port", "base/service.yaml", "targetPort: ops", "targetPort: metrics"),
    Mutant("service-port", "base/service.yaml", "    app.kubernetes.io/component: web\n  ports", "    app.kubernetes.io/component: api\n  ports"),
    Mutant("selector", DEPLOYMENT, "      app.kubernetes.io/component: web\n  template", "      app.kubernetes.io/component: api\n  template"),
    Mutant("selector", DEPLOYMENT, "              app.kubernetes.io/component: web\n", "              app.kubernetes.io/component: api\n"),
    Mutant("selector", "components/database/cluster.yaml", "cnpg.io/podRole: instance", "cnpg.io/podRole: pooler"),
    # part loadtest
    Mutant("selector", "components/loadtest/deployment.yaml", "app.kubernetes.io/name: goals\n", "app.kubernetes.io/name: goal\n"),
    # end loadtest
    Mutant("image", "base/deployment.yaml", "image: goals:dev", "image: goals:latest"),
    Mutant("image", "components/database/imagecatalog.yaml", "@sha256:771f", "#"),
    Mutant("pull-policy", DEPLOYMENT, SERVES, SERVES + "          imagePullPolicy: Always\n", "imagePullPolicy Always"),
    Mutant("resources", DEPLOYMENT, "            requests: {cpu: 500m, memory: 128Mi}\n", "            requests: {memory: 128Mi}\n"),
    Mutant("resources", DEPLOYMENT, '            limits: {cpu: "1", memory: 256Mi}\n', ""),
    Mutant("probe", DEPLOYMENT, "httpGet: {path: /readyz, port: ops}", "httpGet: {path: /ready, port: ops}"),
    Mutant("probe", DEPLOYMENT, "httpGet: {path: /readyz, port: ops}", "httpGet: {path: /readyz, port: http}"),
    Mutant("probe", DEPLOYMENT, "httpGet: {path: /readyz, port: ops}", "httpGet: {path: /readyz, port: 9465}"),
    Mutant("probe", DEPLOYMENT, "httpGet: {path: /readyz, port: ops}", "httpGet: {path: /livez, port: ops}", "one address for both probes"),
    Mutant("probe", DEPLOYMENT, READINESS, ""),
    Mutant("setting", "base/goals.env", "GOALS_HOSTS=", "GOALS_HOST="),
    Mutant("setting", "base/goals.env", "GOALS_LOG_FORMAT=json", "GOALS_LOG_FORMAT=text"),
    Mutant("setting", "base/goals.env", "DB_CA_FILE=/run/secrets/database-ca/ca.crt", "DB_CA_FILE=/run/secrets/database/ca.crt"),
    Mutant("setting", "base/goals.env", "GOALS_BIND=0.0.0.0", "GOALS_BIND=0.0.0.0\nGOALS_OPS_PORT=9465"),
    Mutant("setting", DEPLOYMENT, "- name: DB_USERNAME", "- name: DB_USER"),
    Mutant("service-links", DEPLOYMENT, "      enableServiceLinks: false\n", ""),
    Mutant("migration", DEPLOYMENT, "args: [migrate]", "args: [version]", "a table made by hand"),
    # Scaling and budgets.
    Mutant("autoscaler-replicas", DEPLOYMENT, "  revisionHistoryLimit: 5\n", "  replicas: 3\n", "replicas beside an autoscaler"),
    Mutant("autoscaler-target", HPA, "averageUtilization: 70", "averageUtilization: 20", "a hair trigger"),
    Mutant("autoscaler-target", HPA, "minReplicas: 2", "minReplicas: 1", "one replica"),
    Mutant("autoscaler-target", HPA, "  behavior:\n", "    - type: Resource\n      resource: {name: memory, target: {type: AverageValue, averageValue: 128Mi}}\n  behavior:\n", "a memory target that is the request"),
    Mutant("disruption-budget", "base/kustomization.yaml", "  - poddisruptionbudget.yaml\n", "", "no disruption budget"),
    Mutant("disruption-budget", f"{GATEWAY}/poddisruptionbudget.yaml", "gateway-name: edge", "gateway-name: front"),
    Mutant("disruption-budget", f"{GATEWAY}/poddisruptionbudget.yaml", "maxUnavailable: 1", "maxUnavailable: 0"),
    Mutant("disruption-budget", "base/poddisruptionbudget.yaml", "    matchLabels:\n      app.kubernetes.io/name: goals\n      app.kubernetes.io/component: web\n", "    matchLabels: {cnpg.io/cluster: goals-db}\n"),
    # Monitors.
    Mutant("monitor", "components/monitoring/servicemonitor-goals.yaml", "port: ops", "port: metrics"),
    Mutant("monitor", "components/monitoring/servicemonitor-goals.yaml", "path: /metrics", "path: /prometheus"),
    Mutant("monitor-label", "components/monitoring/servicemonitor-goals.yaml", "    release: kube-prometheus-stack\n", "    team: goals\n"),
    Mutant("monitor", "components/database/podmonitor.yaml", "cnpg.io/podRole: instance", "cnpg.io/podRole: primary"),
    Mutant("monitor", "components/monitoring/podmonitor-cert-manager.yaml", "portNumber: 9402", "portNumber: 9400"),
    Mutant("monitor-label", "../observability/prometheusrule.yaml", "release: kube-prometheus-stack", "team: goals"),
    Mutant("public-metrics", ROUTE, "name: goals, port: 8080", "name: goals, port: 9464", "metrics behind a public route"),
    # PostgreSQL.
    Mutant("database-quorum", CLUSTER, "instances: 3", "instances: 1"),
    Mutant("database-quorum", CLUSTER, "dataDurability: required", "dataDurability: preferred", "no synchronous replication"),
    Mutant("database-quorum", CLUSTER, "enablePodAntiAffinity: true", "enablePodAntiAffinity: false", "instances on one node"),
    Mutant("database-failover", CLUSTER, "leaseDurationSeconds: 5", "leaseDurationSeconds: 15"),
    Mutant("database-failover", CLUSTER, "renewDeadlineSeconds: 4", "renewDeadlineSeconds: 10"),
    Mutant("database-failover", CLUSTER, "    retryPeriodSeconds: 1\n", ""),
    Mutant("database-failover", CLUSTER, "smartShutdownTimeout: 1\n", "smartShutdownTimeout: 180\n"),
    Mutant("database-failover", CLUSTER, "wal_retrieve_retry_interval: 500ms", "wal_retrieve_retry_interval: 5s"),
    Mutant("database-failover", CLUSTER, "max_standby_streaming_delay: 300ms", "max_standby_streaming_delay: 30s"),
    Mutant("database-failover", CLUSTER, "max_standby_streaming_delay: 300ms", 'max_standby_streaming_delay: "-1"'),
    Mutant("database-instances", "components/database/kustomization.yaml", "  - service.yaml\n", ""),
    Mutant("database-instances", INSTANCES, "  clusterIP: None\n", ""),
    Mutant("database-instances", INSTANCES, "  publishNotReadyAddresses: true\n", ""),
    Mutant("database-instances", INSTANCES, "cnpg.io/podRole: instance", "cnpg.io/podRole: pooler"),
    Mutant("database-instances", INSTANCES, "    cnpg.io/cluster: goals-db\n    cnpg.io/podRole: instance\n", "    app.kubernetes.io/name: goals\n"),
    Mutant("standby-reads", "base/goals.env", "DB_STANDBY_HOST=goals-db-all\n", ""),
    Mutant("standby-reads", "base/goals.env", "DB_STANDBY_HOST=goals-db-all", "DB_STANDBY_HOST=goals-db-r"),
    Mutant("standby-reads", "base/goals.env", "DB_STANDBY_REPLIES=2", "DB_STANDBY_REPLIES=1"),
    Mutant("standby-reads", CLUSTER, "instances: 3", "instances: 4"),
    Mutant("database-log", CLUSTER, '      log_parameter_max_length: "0"\n', ""),
    Mutant("database-log", CLUSTER, 'log_parameter_max_length_on_error: "0"', 'log_parameter_max_length_on_error: "-1"'),
    Mutant("database-credentials", DEPLOYMENT, "            secretName: goals-db-app\n", "            secretName: other-db-app\n", "two passwords that must agree"),
    Mutant("database-tls", "base/goals.env", "SSL=verify-full\n", "", "no SSL setting"),
    Mutant("database-plain", CLUSTER, "      - host all all all reject\n", ""),
    Mutant("connections", HPA, "maxReplicas: 10", "maxReplicas: 20"),
    Mutant("connections", CLUSTER, 'max_connections: "200"', 'max_connections: "100"'),
    # Time.
    Mutant("shutdown", DEPLOYMENT, "terminationGracePeriodSeconds: 30", "terminationGracePeriodSeconds: 10"),
    Mutant("shutdown", "base/goals.env", "GOALS_DRAIN_SECONDS=6", "GOALS_DRAIN_SECONDS=4"),
    Mutant("shutdown", DEPLOYMENT, "periodSeconds: 2\n            timeoutSeconds: 2", "periodSeconds: 5\n            timeoutSeconds: 2"),
    Mutant("shutdown", f"{GATEWAY}/nginxproxy.yaml", "terminationGracePeriodSeconds: 40", "terminationGracePeriodSeconds: 35"),
    Mutant("gateway-limits", f"{GATEWAY}/upstreamsettingspolicy.yaml", "timeout: 4s", "timeout: 60s"),
    Mutant("gateway-limits", f"{GATEWAY}/upstreamsettingspolicy.yaml", "    timeout: 4s\n", ""),
    Mutant("gateway-limits", f"{GATEWAY}/kustomization.yaml", "  - upstreamsettingspolicy.yaml\n", ""),
    Mutant("gateway-limits", f"{GATEWAY}/proxysettingspolicy.yaml", "read: 20s", "read: 5s"),
    Mutant("gateway-limits", f"{GATEWAY}/proxysettingspolicy.yaml", "read: 20s", "read: 60s"),
    Mutant("gateway-limits", f"{GATEWAY}/clientsettingspolicy-goals.yaml", "timeout: 2s", "timeout: 10s"),
    Mutant("shutdown", CODE, "keep_alive", "7"),
    Mutant("gateway-limits", CODE, "keep_alive", "4"),
    Mutant("gateway-limits", CODE, "request_deadline", "5"),
    Mutant("gateway-limits", CODE, "gateway_patience", "25"),
    Mutant("service-limits", CODE, "retry_budget", "3.5"),
    Mutant("service-limits", CODE, "command_timeout", "1"),
    Mutant("service-limits", CODE, "body_deadline", "3"),
    Mutant("compose", "../compose.yaml", "", NGINX.format(grace="10s")),
    Mutant("compose", "../compose.yaml", "", "services: {db: {image: postgres}}\n"),
    Mutant("compose", "../nginx.conf", "", UPSTREAM.format(idle="", wait="20s")),
    Mutant("compose", "../nginx.conf", "", UPSTREAM.format(idle="keepalive_timeout 4s;", wait="5s")),
    Mutant("compose", "../nginx.conf", "", "events {}\n"),
    # Pod Security, one for each control.
    *(
        Mutant("pod-security", DEPLOYMENT, old, new, original)
        for old, new, original in (
            (POD, "      securityContext:\n        runAsUser: 10001\n", "no security context"),
            ("        runAsUser: 10001\n", "        runAsUser: 0\n", ""),
            ("          type: RuntimeDefault\n", "          type: Unconfined\n", ""),
            ("            allowPrivilegeEscalation: false\n", "", ""),
            ("              drop: [ALL]\n", "              drop: [NET_RAW]\n", ""),
            ("              drop: [ALL]\n", "              drop: [ALL]\n              add: [SYS_PTRACE]\n", ""),
            (CONTAINER, CONTAINER + "            privileged: true\n", ""),
            (CONTAINER, CONTAINER + "            procMount: Unmasked\n", ""),
            (CONTAINER, CONTAINER + "            appArmorProfile: {type: Unconfined}\n", ""),
            (CONTAINER, CONTAINER + "            seLinuxOptions: {type: spc_t}\n", ""),
            (CONTAINER, CONTAINER + "            windowsOptions: {hostProcess: true}\n", ""),
            (POD, "      hostNetwork: true\n" + POD, ""),
            (POD, "      hostPID: true\n" + POD, ""),
            (POD, "      hostIPC: true\n" + POD, ""),
            (POD, POD + "        sysctls: [{name: kernel.msgmax, value: '65536'}]\n", ""),
            ("          emptyDir: {sizeLimit: 16Mi}\n", "          hostPath: {path: /tmp}\n", ""),
            ("containerPort: 9464}", "containerPort: 9464, hostPort: 9464}", ""),
            ("{path: /livez, port: ops}", "{path: /livez, port: ops, host: 127.0.0.1}", ""),
        )
    ),
    Mutant("hardening", DEPLOYMENT, "      automountServiceAccountToken: false\n", ""),
    Mutant("hardening", DEPLOYMENT, "            readOnlyRootFilesystem: true\n", ""),
    Mutant("namespace-level", "base/namespace.yaml", "enforce: restricted", "enforce: baseline"),
    Mutant("namespace-level", "base/namespace.yaml", "enforce-version: v1.36", "enforce-version: latest"),
    Mutant("default-deny", f"{POLICIES}/goals/kustomization.yaml", "  - ../every-namespace\n", "", "no network policies"),
    Mutant("default-deny", f"{POLICIES}/every-namespace/networkpolicy-default-deny.yaml", "[Ingress, Egress]", "[Egress]"),
    Mutant("quota", "base/kustomization.yaml", "  - resourcequota.yaml\n", "", "no quotas"),
    Mutant("quota", "base/resourcequota.yaml", 'pods: "40"', 'pods: "10"'),
    # Reachability.
    Mutant("policy-end", f"{POLICIES}/goals/networkpolicy-goals-from-gateway.yaml", "port: 8080", "port: 80"),
    Mutant("policy-end", f"{POLICIES}/edge/kustomization.yaml", "  - networkpolicy-gateway-to-goals.yaml\n", ""),
    Mutant("policy-end", f"{POLICIES}/goals/kustomization.yaml", "  - networkpolicy-database-from-operator.yaml\n", ""),
    Mutant("policy-end", f"{POLICIES}/goals/networkpolicy-goals-from-prometheus.yaml", "app.kubernetes.io/name: prometheus", "app: prometheus"),
    Mutant("policy-end", f"{POLICIES}/goals/networkpolicy-database-peers.yaml", "podSelector: {matchExpressions: [{key: cnpg.io/cluster, operator: Exists}]}\n  policy", "podSelector: {matchLabels: {app: postgresql}}\n  policy"),
    *(
        Mutant("reachability", f"{POLICIES}/{folder}/kustomization.yaml", f"  - networkpolicy-{policy}.yaml\n", "")
        for folder, policy in (
            ("goals", "database-to-api-server"),
            ("goals", "goals-to-database"),
            ("goals", "goals-from-prometheus"),
            ("edge", "gateway-from-clients"),
            ("cnpg-system", "operator-from-api-server"),
            ("cert-manager", "controller-to-acme-self-check"),
            ("every-namespace", "allow-dns"),
        )
    ),
    Mutant("reachability", f"{POLICIES}/every-namespace/networkpolicy-default-deny.yaml", "[Ingress, Egress]", "[Egress]"),
    Mutant("reachability", f"{POLICIES}/goals/networkpolicy-database-to-api-server.yaml", "podSelector: {matchExpressions: [{key: cnpg.io/cluster, operator: Exists}]}", "podSelector: {}"),
    Mutant("reachability", f"{POLICIES}/goals/networkpolicy-goals-from-gateway.yaml", "    - from:\n        - namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: edge}}\n          podSelector: {matchLabels: {gateway.networking.k8s.io/gateway-name: edge}}\n      ports", "    - ports"),
    Mutant("reachability", "reachability.md", "| edge/gateway edge | 8443 |", "| edge/gateway edge | – |"),
    Mutant("reachability", "overlays/local/kustomization.yaml", "value: {port: 6443, protocol: TCP}", "value: {port: 8443, protocol: TCP}"),
    # part azure
    # AKS.
    Mutant("acme-solver", ISSUER, "                sectionName: http", "                port: 80 ", "a solver without sectionName"),
    Mutant("acme-solver", ISSUER, "sectionName: http", "sectionName: https-goals"),
    Mutant("acme-solver", ISSUER, "            serviceType: ClusterIP # NodePort otherwise\n", ""),
    Mutant("acme-staging", ISSUER, "acme-staging-v02", "acme-v02", "Let's Encrypt's production at the first try"),
    Mutant("reference", "overlays/aks/database/patch-cluster.yaml", "storageClass: goals-db", "storageClass: fast"),
    Mutant("reference", "components/backup/patch-cluster.yaml", "barmanObjectName: goals-db", "barmanObjectName: goals"),
    Mutant("reference", "components/backup/scheduledbackup.yaml", "  cluster:\n    name: goals-db", "  cluster:\n    name: goals"),
    Mutant("reference", "components/secrets/key-vault/monitoring/secretstore.yaml", "        name: key-vault", "        name: vault"),
    Mutant("reference", "components/secrets/key-vault/monitoring/rolebinding.yaml", "  name: key-vault-token\nsubjects", "  name: token\nsubjects"),
    Mutant("configuration", "components/monitoring/receiver/alertmanagerconfig.yaml", "key: url", "key: webhook"),
    Mutant("database-quorum", "overlays/aks/database/patch-cluster.yaml", 'limits: {cpu: "1", memory: 4Gi}', 'limits: {cpu: "1", memory: 8Gi}', "no resources"),
    Mutant("database-instances", "overlays/aks/restore/template/patch-service.yaml", "cluster, value: goals-db-restored", "cluster, value: goals-db"),
    Mutant("database-backup", "components/backup/kustomization.yaml", "  - scheduledbackup.yaml\n", "", "no backups"),
    Mutant("database-backup", "components/backup/patch-cluster.yaml", "isWALArchiver: true", "isWALArchiver: false"),
    Mutant("database-backup", "overlays/aks/database/patch-cluster.yaml", "size: 32Gi", "size: 1Gi", "a disk of 1 GiB"),
    Mutant("backup-schedule", "components/backup/scheduledbackup.yaml", '"0 30 2 * * *"', '"30 2 * * *"'),
    Mutant("database-archive", "overlays/aks/restore/template/patch-cluster.yaml", "serverName, value: goals-db-restored", "serverName, value: goals-db"),
    Mutant("kubernetes-version", "aks/settings.sh", "KUBERNETES_VERSION:-1.36", "KUBERNETES_VERSION:-1.29", "Kubernetes 1.29"),
    Mutant("site", "overlays/aks/site/site.yaml", "host: goals.fill-me-in.example", "host: goals.example.org"),
    # end azure
    # part argocd
    # Argo CD.
    Mutant("sync-wave", "argocd/goals/kustomization.yaml", "kind: ImageCatalog|ObjectStore|Cluster}", "kind: Cluster}"),
    Mutant("sync-wave", HOOK, 'sync-wave: "-1"', 'sync-wave: "1"'),
    Mutant("sync-wave", HOOK, 'sync-wave: "-1"', 'sync-wave: "-2"'),
    Mutant("sync-hook", HOOK, "hook: Sync", "hook: PreSync"),
    Mutant("sync-hook", HOOK, "  backoffLimit: 4\n", "  backoffLimit: 4\n  ttlSecondsAfterFinished: 60\n"),
    Mutant("sync-hook", HOOK, "    argocd.argoproj.io/hook-delete-policy: BeforeHookCreation\n", ""),
    Mutant("application", f"{APPS}/application-goals.yaml", "project: goals", "project: site"),
    Mutant("application", "argocd/projects/appproject-platform.yaml", "    - quay.io/jetstack/charts\n", ""),
    Mutant("application", "argocd/projects/appproject-platform.yaml", "namespace: cnpg-system}", "namespace: postgresql}"),
    Mutant("application-version", f"{APPS}/application-nginx-gateway-fabric.yaml", "targetRevision: 2.6.7", 'targetRevision: "*"', "an unpinned chart"),
    Mutant("application-version", f"{APPS}/application-nginx-gateway-fabric.yaml", "ghcr.io/nginx/charts", "ghcr.io/nginxinc/charts", "a chart's old address"),
    Mutant("application-apply", f"{APPS}/application-kube-prometheus-stack.yaml", "[ServerSideApply=true]", "[Validate=true]", "no server-side apply"),
    Mutant("application-replicas", f"{APPS}/application-goals.yaml", ", RespectIgnoreDifferences=true", ""),
    Mutant("application-wave", f"{APPS}/application-cert-manager.yaml", 'sync-wave: "-4"', 'sync-wave: "-5"'),
    Mutant("application-wave", f"{APPS}/application-plugin-barman-cloud.yaml", 'sync-wave: "-3"', 'sync-wave: "2"'),
    Mutant("application-health", "platform/argocd/configmap-argocd-cm.yaml", "argoproj.io_Application", "argoproj.io_AppProject"),
    Mutant("application-right", "argocd/projects/appproject-goals.yaml", "    - {group: policy, kind: PodDisruptionBudget}\n", ""),
    Mutant("application-right", "argocd/projects/appproject-goals.yaml", "    - {server: https://kubernetes.default.svc, namespace: nginx-gateway}\n", ""),
    Mutant("silent-streams", f"{SERVER}/kustomization.yaml", "  - proxysettingspolicy.yaml\n", ""),
    Mutant("silent-streams", f"{SERVER}/proxysettingspolicy.yaml", "read: 1h", "read: 1m"),
    Mutant("backend-tls", f"{SERVER}/httproute.yaml", "port: 443", "port: 80", "Argo CD's route to port 80"),
    Mutant("backend-tls", f"{SERVER}/kustomization.yaml", "  - backendtlspolicy.yaml\n", ""),
    Mutant("backend-name", f"{SERVER}/certificate.yaml", "    - argocd-server.argocd.svc\n", ""),
    Mutant("argocd-insecure", "platform/argocd/configmap-argocd-cmd-params-cm.yaml", "\ndata:\n", '\ndata:\n  server.insecure: "true"\n', "server.insecure"),
    Mutant("pod-security", HOOK, "            allowPrivilegeEscalation: false\n", ""),
    Mutant("orphan", "argocd/application.yaml", "path: k8s/argocd/apps", "path: k8s/argocd/goals", "no Application"),
    Mutant("application-path", f"{APPS}/application-goals.yaml", "path: k8s/argocd/goals", "path: k8s/argocd/site"),
    # end argocd
    # Files.
    Mutant("orphan", "1", "", "package main\n", "a file that is there by accident"),
    Mutant("orphan", "components/monitoring/kustomization.yaml", "  - servicemonitor-goals.yaml\n", "", "manifests that nothing applies"),
    Mutant("checked-version", "platform/cloudnative-pg/kustomization.yaml", "v1.30.0/releases/cnpg-1.30.0", "v1.23.1/releases/cnpg-1.23.1", "an old operator"),
    Mutant("checked-version", "platform/gateway-api/kustomization.yaml", "gateway-api/v1.5.1/", "gateway-api/main/", "CRDs of another version than the gateway's"),
    Mutant("checked-version", "platform/charts.txt", "cert-manager v1.21.1", "cert-manager v1.15.3"),
    Mutant("server-side", "platform/install.sh", "kubectl apply --server-side", "kubectl apply", "a plain apply"),
    # part loadtest
    Mutant("replaced-whole", "components/loadtest/kustomization.yaml", " --cascade=foreground", ""),
    # end loadtest
    Mutant("install-order", "platform/install.sh", "ORDER=(namespaces gateway-api prometheus-operator-crds cert-manager", "ORDER=(namespaces prometheus-operator-crds cert-manager gateway-api"),
    Mutant("gateway-certificates", "platform/cert-manager/values.yaml", "  gatewayAPI:\n    enabled: true", "  gatewayAPI:\n    enabled: false", "the Gateway API switched on by hand"),
    Mutant("immutable", DEPLOYMENT, "      app.kubernetes.io/name: goals\n      app.kubernetes.io/component: web\n  template:\n    metadata:\n      labels:\n", "      app.kubernetes.io/name: goals\n      app.kubernetes.io/version: goals:dev\n      app.kubernetes.io/component: web\n  template:\n    metadata:\n      labels:\n        app.kubernetes.io/version: goals:dev\n"),
)
# fmt: on

BESIDE = {
    "conflict": {
        "platform/namespaces/gateway.yaml": (ROOT / EDGE)
        .read_text(encoding="utf-8")
        .replace("port: 80\n", "port: 8080\n")
    },
    "compose": {"../compose.yaml": GOOD_COMPOSE, "../nginx.conf": GOOD_NGINX},
    "section-name": {
        ROUTE: (ROOT / ROUTE).read_text(encoding="utf-8").replace("      sectionName: https-goals", "      # none")
    },
    "plain-route": {
        ROUTE: (ROOT / ROUTE).read_text(encoding="utf-8").replace("sectionName: https-goals", "sectionName: http")
    },
}
"""Files that a mutant needs beside its own change."""


def copy(folder: Path) -> Path:
    """The folder k8s, with what it includes and who speaks of it."""
    for source in (ROOT, ROOT.parent / "observability", ROOT.parent / "docs"):
        if source.is_dir():
            shutil.copytree(source, folder / source.name, ignore=IGNORED)
    for file in ("README.md", "Makefile"):
        if (ROOT.parent / file).is_file():
            shutil.copy(ROOT.parent / file, folder / file)
    return folder / ROOT.name


def break_copy(root: Path, mutant: Mutant) -> None:
    """Change a copy; a mutant whose text is not there any more is an error, not a mutant that was caught."""
    for file, text in BESIDE.get(mutant.rule, {}).items():
        (root / file).parent.mkdir(exist_ok=True)
        (root / file).write_text(text, encoding="utf-8")
    target = root / mutant.file
    before = target.read_text(encoding="utf-8") if target.exists() and mutant.rule != "compose" else ""
    if mutant.old not in before:
        raise LookupError(f"{mutant.file} does not hold {mutant.old!r} any more: rewrite the mutant")
    target.write_text(
        before.replace(mutant.old, mutant.new, 1) if mutant.old else before + mutant.new, encoding="utf-8"
    )


def affected(root: Path, folder: Path) -> set[Path]:
    """All that a kustomization includes, itself among them."""
    files = {folder / "kustomization.yaml"}
    for one in includes(folder, "resources") | includes(folder, "components"):
        files |= affected(root, one) if one.is_dir() else {one}
    files |= set(folder.glob("configmap-*.yaml")) if is_remote(folder) else set()
    (own,) = read((folder / "kustomization.yaml").read_text(encoding="utf-8"))
    for entry in [*own.get("patches", ()), *own.get("configMapGenerator", ())]:
        files |= {(folder / one).resolve() for one in (entry.get("path"), *entry.get("envs", ())) if one}
    return files


def find(mutant: Mutant, baseline: dict[str, list[Manifest]], schemas: Schemas) -> list[Finding]:
    """What the rule that is there for it says about a mutant."""
    if mutant.file == CODE:
        limits = LIMITS | {mutant.old: float(mutant.new)}
        renders = {one: baseline[one] for one in lint.TOGETHER[0]}
        return list(find_broken(Inventory(renders, limits=limits), mutant.rule))
    with tempfile.TemporaryDirectory(prefix="goals-mutant-") as folder:
        copied = Copy(Path(folder).resolve(), mutant, baseline)
        try:
            if mutant.rule in RULES:
                return next((found for together in lint.TOGETHER if (found := copied.broken(together, schemas))), [])
            return [one for one in copied.checked(schemas) if one.rule == mutant.rule]
        except RenderError as error:
            if mutant.rule == "render":
                return [Finding(mutant.file, "kustomization", str(error), "render")]
            raise


class Copy:
    """A broken copy, of which only what the change can touch is rendered again."""

    def __init__(self, folder: Path, mutant: Mutant, baseline: dict[str, list[Manifest]]) -> None:
        self.root = copy(folder)
        self.mutant = mutant
        self._renders = dict(baseline)
        self._baseline = baseline
        break_copy(self.root, mutant)
        self._changed = {(self.root / file).resolve() for file in (mutant.file, *BESIDE.get(mutant.rule, ()))}

    def renew(self, where: str) -> bool:
        """Render a folder again if the change touches it; tell whether it does."""
        if not self._changed & affected(self.root, self.root / where):
            return False
        if self._renders[where] is self._baseline[where]:
            self._renders[where] = render(self.root / where)
        return True

    def broken(self, together: tuple[str, ...], schemas: Schemas) -> list[Finding]:
        """What the rule says about what is in one cluster at one time."""
        if not sum(self.renew(where) for where in together):
            return []
        objects = lint.sound({one: self._renders[one] for one in together}, schemas)
        return list(find_broken(Inventory(objects), self.mutant.rule))

    def checked(self, schemas: Schemas) -> Iterator[Finding]:
        """What the checks say that are no rule of objects."""
        touched = [where for where in self._renders if self.renew(where)]
        if self.mutant.rule in {"schema", "stable-version", "duplicate"}:
            for where in touched:
                yield from lint.check_objects(where, self._renders[where], schemas)
        elif self.mutant.rule in TREE:
            yield from find_misplaced(Tree(self.root), self.mutant.rule)
        elif self.mutant.rule == "reachability":
            yield from find_unreviewed(self.root, self._renders)
        else:
            yield from lint.check_files(self.root, self._renders)


_BASELINE: dict[str, list[Manifest]] = {}
_SCHEMAS: list[Schemas] = []
"""Filled before the processes are forked, so that none of them reads all of it again."""


def _work(number: int) -> tuple[int, list[Finding]]:
    return number, find(MUTANTS[number], _BASELINE, _SCHEMAS[0])


def main() -> int:
    """Break, look, count; 1 where a mutant lives or a rule has none."""
    started = time.monotonic()
    _SCHEMAS.append(Schemas(Path(os.environ.get("CRDS") or lint.CRDS)))
    _BASELINE.update(render_all(ROOT))
    without = sorted({*RULES, *TREE, *OTHERS} - {one.rule for one in MUTANTS})
    alive = 0
    with ProcessPoolExecutor(max_workers=os.cpu_count()) as pool:
        for number, found in pool.map(_work, range(len(MUTANTS))):
            mutant = MUTANTS[number]
            alive += not found
            change = f"{mutant.old.strip()!r} → {mutant.new.strip()!r}".replace("\\n", " ")
            print(
                f"{'caught' if found else 'ALIVE '} {mutant.rule:22} {mutant.file}: {mutant.original or change:.110}",
                flush=True,
            )
    for rule in without:
        print(f"error: no mutant shows that the rule {rule} works", file=sys.stderr)
    defects = sum(bool(one.original) for one in MUTANTS)
    print(
        f"{len(MUTANTS) - alive}/{len(MUTANTS)} caught ({len({one.rule for one in MUTANTS})} rules, {defects} defects of the original Go app)"
        f" in {time.monotonic() - started:.0f} s"
    )
    return 1 if alive or without else 0


if __name__ == "__main__":
    sys.exit(main())
