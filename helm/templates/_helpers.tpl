{{/* The image of all containers. */}}
{{- define "clustermesh.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* What the pods of a component are selected by; it never changes. Call with (list $ "agent"). */}}
{{- define "clustermesh.selector" -}}
app.kubernetes.io/name: clustermesh
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* The labels of an object of a component. Call with (list $ "agent"). */}}
{{- define "clustermesh.labels" -}}
{{- $ := index . 0 -}}
{{ include "clustermesh.selector" . }}
app.kubernetes.io/instance: {{ $.Release.Name }}
app.kubernetes.io/version: {{ $.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $.Release.Service }}
app.kubernetes.io/part-of: clustermesh
helm.sh/chart: {{ printf "%s-%s" $.Chart.Name $.Chart.Version | replace "+" "_" }}
{{- with $.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* The labels of a pod: none that change with the chart's version, or every upgrade would restart it. */}}
{{- define "clustermesh.podLabels" -}}
{{- $ := index . 0 -}}
{{ include "clustermesh.selector" . }}
app.kubernetes.io/part-of: clustermesh
{{- with $.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* STABLE API: peers' certificates and addresses are made from this name. */}}
{{- define "clustermesh.apiserver.name" -}}
clustermesh-apiserver
{{- end -}}

{{/* As whom our agents log in to other clusters. */}}
{{- define "clustermesh.remoteUser" -}}
{{- if eq .Values.clustermesh.apiserver.tls.authMode "legacy" -}}
remote
{{- else -}}
remote-{{ .Values.cluster.name }}
{{- end -}}
{{- end -}}

{{/*
A volume with the certificate, key and trusted CAs of a profile (server, admin, local, remote).
Call with (list $ "server").
*/}}
{{- define "clustermesh.certificateVolume" -}}
{{- $ := index . 0 -}}
{{- $profile := index . 1 -}}
name: {{ $profile }}-cert
projected:
  defaultMode: 0400
  sources:
    - secret:
        name: clustermesh-apiserver-{{ $profile }}-cert
        items:
          - key: tls.crt
            path: tls.crt
          - key: tls.key
            path: tls.key
          {{- if not $.Values.tls.caBundle.enabled }}
          - key: ca.crt
            path: ca.crt
          {{- else }}
    - configMap:
        name: {{ $.Values.tls.caBundle.name }}
        items:
          - key: {{ $.Values.tls.caBundle.key }}
            path: ca.crt
          {{- end }}
{{- end -}}

{{/* The names below ips of clusters, for the pods' hosts file: the list hostAliases, or nothing. */}}
{{- define "clustermesh.hostAliases" -}}
{{- $config := .Values.clustermesh.config -}}
{{- if $config.enabled -}}
{{- range $cluster := $config.clusters -}}
{{- range $ip := $cluster.ips }}
- ip: {{ $ip | quote }}
  hostnames:
    - {{ $cluster.name }}.{{ $config.domain }}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The settings that both daemons have; see `clustermesh-agent --help`. */}}
{{- define "clustermesh.commonSettings" -}}
cluster-name: {{ .Values.cluster.name | quote }}
cluster-id: {{ int .Values.cluster.id }}
max-connected-clusters: {{ int .Values.clustermesh.maxConnectedClusters }}
log-level: {{ .Values.logLevel }}
log-format: {{ .Values.logFormat }}
clusters-dir: /etc/clustermesh/clusters
{{- end -}}

{{/* The settings of agents about how packets get to other clusters. */}}
{{- define "clustermesh.agent.network" -}}
{{- $agent := .Values.agent -}}
{{- $clusters := list -}}
{{- range $cluster, $routing := $agent.clusterRouting -}}
{{- $clusters = append $clusters (printf "%s=%s" $cluster $routing) -}}
{{- end -}}
routing: {{ $agent.routing }}
cluster-routing: {{ join "," $clusters | quote }}
tunnel-protocol: {{ $agent.tunnelProtocol }}
tunnel-port: {{ int $agent.tunnelPort }}
probe-port: {{ int $agent.probePort }}
mtu: {{ int $agent.MTU }}
fast-path: {{ $agent.fastPath | quote }}
{{- with .Values.encryption }}
encryption: {{ ternary .type "none" .enabled }}
encryption-port: {{ int .wireguard.port }}
encryption-keepalive: {{ int .wireguard.persistentKeepalive }}
encryption-key-age: {{ .wireguard.keyAge }}
{{- end }}
{{- end -}}

{{/*
What changes when a settings file does: daemons read theirs at start, so their pods have to start
anew. Call with (list $ "agent.yaml").
*/}}
{{- define "clustermesh.settingsChecksum" -}}
{{- $ := index . 0 -}}
{{- $config := include (print $.Template.BasePath "/common/config.yaml") $ | fromYaml -}}
{{- get $config.data (index . 1) | sha256sum -}}
{{- end -}}

{{/* The UDP ports at which nodes receive from those of other clusters, with what each is for. */}}
{{- define "clustermesh.udpPorts" -}}
{{- $ports := list -}}
{{- if .Values.encryption.enabled -}}
  {{- $port := int .Values.encryption.wireguard.port -}}
  {{- $ports = append $ports (printf "%d-%d (WireGuard)" $port (add $port 3)) -}}
{{- else if or (eq .Values.agent.routing "tunnel") (has "tunnel" (values .Values.agent.clusterRouting)) -}}
  {{- $port := int .Values.agent.tunnelPort | default (ternary 6081 8472 (eq .Values.agent.tunnelProtocol "geneve")) -}}
  {{- $ports = append $ports (printf "%d (%s)" $port .Values.agent.tunnelProtocol) -}}
{{- end -}}
{{- with int .Values.agent.probePort -}}
  {{- $ports = append $ports (printf "%d (probes)" .) -}}
{{- end -}}
{{- with $ports -}}
the ports {{ join ", " . }}
{{- end -}}
{{- end -}}
