{{- /* The pod of a class of workers: (dict "root" $ "class" "gpu" "worker" …) */}}
{{- define "qe.worker.pod" -}}
metadata:
  labels:
    {{- include "qe.labels" .root | nindent 4 }}
    app.kubernetes.io/component: worker
    quant-experts/class: {{ .class }}
  annotations:
    {{- include "qe.checksum" .root | nindent 4 }}
    {{- if .root.Values.metrics.port }}
    prometheus.io/scrape: "true"
    prometheus.io/port: {{ .root.Values.metrics.port | quote }}
    {{- end }}
spec:
  {{- include "qe.pod" .root | nindent 2 }}
  terminationGracePeriodSeconds: {{ .worker.terminationGracePeriodSeconds }}
  {{- with .worker.runtimeClassName }}
  runtimeClassName: {{ . }}
  {{- end }}
  {{- if .worker.once }}
  restartPolicy: Never
  {{- end }}
  containers:
    - name: worker
      image: {{ include "qe.image" (dict "root" .root "of" (ternary "worker-cuda" "worker" (gt (int .worker.gpus) 0))) }}
      {{- include "qe.container" .root | nindent 6 }}
      # The pod's name is the worker's: `celery@HOST` in /v1/workers.
      args: {{ ternary (list "qe" "worker" "--once") (list "qe" "worker") .worker.once | toJson }}
      env:
        {{- $settings := merge (dict "QE_METRICS_PORT" .root.Values.metrics.port) .worker.settings }}
        {{- $secrets := list "QE_DATABASE_URL" "QE_REDIS_URL" }}
        {{- $optional := list "AWS_ACCESS_KEY_ID" "AWS_SECRET_ACCESS_KEY" "QE_HUB_TOKEN" "QE_HUB_KEY" }}
        {{- include "qe.env" (dict "root" .root "secrets" $secrets "optional" $optional "settings" $settings) | nindent 8 }}
      {{- if .root.Values.metrics.port }}
      ports:
        {{- range $number := until (max 1 (int .worker.gpus) | int) }}
        - { name: metrics-{{ $number }}, containerPort: {{ add $.root.Values.metrics.port $number }} }
        {{- end }}
      {{- end }}
      startupProbe:
        {{- include "qe.alive" .root | nindent 8 }}
      livenessProbe:
        {{- include "qe.alive" .root | nindent 8 }}
      resources:
        {{- $gpus := ternary (dict "nvidia.com/gpu" .worker.gpus) (dict) (gt (int .worker.gpus) 0) }}
        {{- toYaml (merge (dict) .worker.resources (dict "limits" $gpus)) | nindent 8 }}
      volumeMounts: {{- include "qe.mounts" .root | nindent 8 }}
  volumes:
    {{- include "qe.volumes" .root | nindent 4 }}
    {{- if .worker.workStorageClass }}
    - name: home
      ephemeral:
        volumeClaimTemplate:
          spec:
            accessModes: [ReadWriteOnce]
            storageClassName: {{ .worker.workStorageClass }}
            resources: { requests: { storage: {{ .worker.workSize }} } }
    {{- else }}
    - { name: home, emptyDir: { sizeLimit: {{ .worker.workSize }} } }
    {{- end }}
  {{- with .worker.nodeSelector }}
  nodeSelector: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .worker.tolerations }}
  tolerations: {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}

{{- /* A pod is wanted for every `gpus` jobs that wait or are being worked on. docs/kubernetes.md explains the query. */}}
{{- define "qe.worker.trigger" -}}
- type: postgresql
  metadata:
    query: >-
      SELECT count(*) FROM jobs WHERE lease_until IS NOT NULL OR (status = 'queued' AND run_after <= clock_timestamp())
    targetQueryValue: {{ max 1 (int .worker.gpus) | quote }}
  authenticationRef: { name: {{ include "qe.name" .root }} }
{{- end }}
