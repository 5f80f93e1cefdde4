{{/*
Everything that no schema can say: it renders nothing, or fails. Helm renders templates in no order
that one could rely on, so those that a mistake would make stumble include it themselves.
*/}}
{{- define "clustermesh.validate" -}}
{{- $name := .Values.cluster.name -}}
{{- $id := int .Values.cluster.id -}}
{{- $max := int .Values.clustermesh.maxConnectedClusters -}}
{{- $tls := .Values.clustermesh.apiserver.tls -}}
{{- $ca := .Values.tls.ca -}}
{{- $bundle := .Values.tls.caBundle -}}

{{- if not $name -}}
  {{- fail "\n\ncluster.name is missing: add --set cluster.name=NAME, a name that no other cluster of the mesh has" -}}
{{- end -}}
{{- if eq $id 0 -}}
  {{- fail (printf "\n\ncluster.id is missing: add --set cluster.id=N, a number from 1 to %d that no other cluster of the mesh has" $max) -}}
{{- end -}}
{{- if gt $id $max -}}
  {{- fail (printf "\n\ncluster.id %d is out of range: choose one from 1 to %d, or set clustermesh.maxConnectedClusters=511 in every cluster of the mesh" $id $max) -}}
{{- end -}}

{{- if ne (empty $ca.cert) (empty $ca.key) -}}
  {{- fail "\n\ntls.ca.cert and tls.ca.key belong together: set both, or none to have a CA generated" -}}
{{- end -}}
{{- if and $bundle.content (not $bundle.enabled) -}}
  {{- fail "\n\ntls.caBundle.content is not used: add --set tls.caBundle.enabled=true" -}}
{{- end -}}
{{- if eq $tls.auto.method "certmanager" -}}
  {{- if not $tls.auto.certManagerIssuerRef.name -}}
    {{- fail "\n\ncert-manager needs to know the issuer: set clustermesh.apiserver.tls.auto.certManagerIssuerRef.name (and .kind, .group)" -}}
  {{- end -}}
{{- end -}}
{{- if and (eq $tls.auto.method "provided") $tls.enableSecrets -}}
  {{- range $profile := list "server" "admin" "local" "remote" -}}
    {{- $pair := get $tls $profile -}}
    {{- if or (not $pair.cert) (not $pair.key) -}}
      {{- fail (printf "\n\nclustermesh.apiserver.tls.%s.cert and .key are missing: set them, or make the Secret clustermesh-apiserver-%s-cert yourself and set clustermesh.apiserver.tls.enableSecrets=false" $profile $profile) -}}
    {{- end -}}
  {{- end -}}
  {{- if not $ca.cert -}}
    {{- fail "\n\ntls.ca.cert is missing: certificates are provided, so say which CA has signed them" -}}
  {{- end -}}
{{- end -}}
{{- if ne $tls.auto.method "provided" -}}
  {{- range $profile := list "server" "admin" "local" "remote" -}}
    {{- $pair := get $tls $profile -}}
    {{- if or $pair.cert $pair.key -}}
      {{- fail (printf "\n\nclustermesh.apiserver.tls.%s.cert and .key would not be used: the method is %s; set clustermesh.apiserver.tls.auto.method=provided" $profile $tls.auto.method) -}}
    {{- end -}}
  {{- end -}}
{{- end -}}

{{- with .Values.clustermesh.config -}}
  {{- if and .clusters (not .enabled) -}}
    {{- fail "\n\nclustermesh.config.clusters is not used: add --set clustermesh.config.enabled=true" -}}
  {{- end -}}
  {{- $seen := dict -}}
  {{- range .clusters -}}
    {{- if eq .name $name -}}
      {{- fail (printf "\n\nclustermesh.config.clusters names this cluster itself (%s): name only the others" $name) -}}
    {{- end -}}
    {{- if hasKey $seen .name -}}
      {{- fail (printf "\n\nclustermesh.config.clusters names %s twice: give one of them its own name" .name) -}}
    {{- end -}}
    {{- $_ := set $seen .name true -}}
    {{- if and (not .address) (not .ips) -}}
      {{- fail (printf "\n\ncluster %s cannot be reached: give it an address (a name or address that is in its server certificate), or ips" .name) -}}
    {{- end -}}
    {{- if and .address .ips -}}
      {{- fail (printf "\n\ncluster %s has both address and ips: keep one" .name) -}}
    {{- end -}}
    {{- $own := .tls | default dict -}}
    {{- if ne (empty $own.cert) (empty $own.key) -}}
      {{- fail (printf "\n\ncluster %s: tls.cert and tls.key belong together" .name) -}}
    {{- end -}}
  {{- end -}}
{{- end -}}

{{- with .Values.clustermesh.apiserver.podDisruptionBudget -}}
  {{- if and .enabled (not (kindIs "invalid" .minAvailable)) (not (kindIs "invalid" .maxUnavailable)) -}}
    {{- fail "\n\nclustermesh.apiserver.podDisruptionBudget has both minAvailable and maxUnavailable: set one of them to null" -}}
  {{- end -}}
{{- end -}}

{{- if and .Values.encryption.enabled (eq .Values.agent.datapath "none") -}}
  {{- fail "\n\nencryption.enabled needs a datapath that can encrypt: leave agent.datapath at bpf" -}}
{{- end -}}

{{- if and .Values.agent.metrics.serviceMonitor.enabled (not .Values.agent.metrics.enabled) -}}
  {{- fail "\n\nagents answer on loopback only, where Prometheus cannot scrape them: add --set agent.metrics.enabled=true" -}}
{{- end -}}
{{- if and .Values.alerts.enabled (not .Values.agent.metrics.enabled) -}}
  {{- fail "\n\nalerts.enabled makes alerts of what agents tell Prometheus, and they answer on loopback only: add --set agent.metrics.enabled=true" -}}
{{- end -}}
{{- if and .Values.alerts.enabled (lookup "v1" "Namespace" "" "kube-system") (not (.Capabilities.APIVersions.Has "monitoring.coreos.com/v1/PrometheusRule")) -}}
  {{- fail "\n\nthis cluster has no PrometheusRule: install the Prometheus operator first, or leave alerts.enabled off" -}}
{{- end -}}
{{- if or .Values.agent.metrics.serviceMonitor.enabled .Values.clustermesh.apiserver.metrics.serviceMonitor.enabled -}}
  {{- /* `helm template` knows no cluster: only one without the operator is told. */ -}}
  {{- if and (lookup "v1" "Namespace" "" "kube-system") (not (.Capabilities.APIVersions.Has "monitoring.coreos.com/v1/ServiceMonitor")) -}}
    {{- fail "\n\nthis cluster has no ServiceMonitor: install the Prometheus operator first, or leave serviceMonitor.enabled off" -}}
  {{- end -}}
{{- end -}}
{{- end -}}
