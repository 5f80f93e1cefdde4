{{/* What makes certificates, once or again and again: the spec of a Job. */}}
{{- define "clustermesh.certsJob" -}}
{{- $tls := .Values.clustermesh.apiserver.tls }}
{{- $server := (include "clustermesh.profiles" . | fromYaml).server }}
backoffLimit: 10
template:
  metadata:
    labels:
      {{- include "clustermesh.podLabels" (list . "certs") | nindent 6 }}
  spec:
    restartPolicy: OnFailure
    serviceAccountName: clustermesh-certs
    enableServiceLinks: false
    {{- with .Values.imagePullSecrets }}
    imagePullSecrets:
      {{- toYaml . | nindent 6 }}
    {{- end }}
    securityContext:
      {{- toYaml .Values.clustermesh.apiserver.podSecurityContext | nindent 6 }}
    tolerations:
      {{- toYaml .Values.clustermesh.apiserver.tolerations | nindent 6 }}
    nodeSelector:
      {{- toYaml .Values.clustermesh.apiserver.nodeSelector | nindent 6 }}
    containers:
      - name: certs
        image: {{ include "clustermesh.image" . }}
        imagePullPolicy: {{ .Values.image.pullPolicy }}
        command: [clustermesh, certs, secrets]
        args:
          - --cluster-name={{ .Values.cluster.name }}
          - --namespace={{ .Release.Namespace }}
          - --auth-mode={{ $tls.authMode }}
          - --lifetime={{ int $tls.auto.certValidityDuration }}d
          {{- range concat $server.dns $server.ips }}
          - --server-name={{ . }}
          {{- end }}
        securityContext:
          {{- toYaml .Values.clustermesh.apiserver.securityContext | nindent 10 }}
        resources:
          requests:
            cpu: 10m
            memory: 64Mi
        terminationMessagePolicy: FallbackToLogsOnError
        volumeMounts:
          - name: tmp
            mountPath: /tmp
    volumes:
      - name: tmp # private keys, for a moment
        emptyDir:
          medium: Memory
          sizeLimit: 4Mi
{{- end -}}
