{{/*
The four certificates of a cluster, as YAML: for each profile its common name, which is the etcd
user, its DNS names and its addresses. The same as in certs/leaf.py.
*/}}
{{- define "clustermesh.profiles" -}}
{{- $tls := .Values.clustermesh.apiserver.tls -}}
server:
  user: clustermesh-apiserver.cilium.io
  dns:
    {{- $names := list "clustermesh-apiserver.cilium.io" "*.mesh.cilium.io" }}
    {{- $names = append $names (printf "*.%s" .Values.clustermesh.config.domain) }}
    {{- $names = append $names (printf "%s.%s.svc" (include "clustermesh.apiserver.name" .) .Release.Namespace) }}
    {{- concat $names $tls.server.extraDnsNames | uniq | toYaml | nindent 4 }}
  ips:
    {{- concat (list "127.0.0.1" "::1") $tls.server.extraIpAddresses | uniq | toYaml | nindent 4 }}
{{- $remote := include "clustermesh.remoteUser" . }}
{{- $users := dict "admin" (printf "admin-%s" .Values.cluster.name) "local" (printf "local-%s" .Values.cluster.name) "remote" $remote }}
{{- range $profile, $user := $users }}
{{ $profile }}:
  user: {{ $user }}
  dns: [{{ $user }}]
  ips: []
{{- end }}
{{- end -}}
