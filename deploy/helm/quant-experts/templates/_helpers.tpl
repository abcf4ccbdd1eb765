{{- define "qe.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "qe.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "qe.labels" -}}
{{ include "qe.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "qe.secret" -}}
{{ .Values.existingSecret | default (include "qe.name" .) }}
{{- end }}

{{- /* (dict "root" $ "of" "api") */}}
{{- define "qe.image" -}}
{{ .root.Values.image.prefix }}-{{ .of }}:{{ .root.Values.image.tag | default .root.Chart.AppVersion }}
{{- end }}

{{- /* Whole or not at all: what an install needs and the values do not say. */}}
{{- define "qe.check" -}}
{{- if not .Values.existingSecret }}
{{- range list "QE_DATABASE_URL" "QE_REDIS_URL" "QE_SECRET" "QE_API_KEY" }}
{{- if not (index $.Values.secret .) }}{{ fail (printf "set secret.%s, or existingSecret to a Secret that has it" .) }}{{ end }}
{{- end }}
{{- if and (contains "pgbouncer=true" .Values.secret.QE_DATABASE_URL) (not .Values.secret.QE_DIRECT_DATABASE_URL) }}{{ fail "secret.QE_DATABASE_URL leads to a pooler: set secret.QE_DIRECT_DATABASE_URL to PostgreSQL's own address, for migrations and the keeper" }}{{ end }}
{{- end }}
{{- if not (or .Values.storage.url .Values.storage.existingClaim) }}{{ fail "set storage.url to s3://…, or storage.existingClaim to a ReadWriteMany claim" }}{{ end }}
{{- range $class, $given := .Values.workers }}
{{- $worker := mergeOverwrite (deepCopy $.Values.workerDefaults) $given }}
{{- if and $worker.once (not $worker.autoscaling.enabled) }}{{ fail (printf "workers.%s.once needs workers.%s.autoscaling.enabled: nothing else would start its pods" $class $class) }}{{ end }}
{{- end }}
{{- end }}

{{- /* Environment of a process: (dict "root" $ "secrets" (list …) "optional" (list …) "settings" dict) */}}
{{- define "qe.env" -}}
- { name: QE_HOME, value: /var/lib/qe }
- { name: QE_HEARTBEAT_FILE, value: /tmp/heartbeat }
- { name: QE_LOG_FORMAT, value: json }
- { name: QE_STORAGE_URL, value: {{ .root.Values.storage.url | default "file:///var/lib/qe/storage" | quote }} }
{{- if .root.Values.models.existingClaim }}
- { name: QE_MODEL_ROOT, value: /models }
{{- end }}
{{- range .secrets }}
- name: {{ . }}
  valueFrom: { secretKeyRef: { name: {{ include "qe.secret" $.root }}, key: {{ . }} } }
{{- end }}
{{- range .optional }}
- name: {{ . }}
  valueFrom: { secretKeyRef: { name: {{ include "qe.secret" $.root }}, key: {{ . }}, optional: true } }
{{- end }}
{{- range $name, $value := merge (dict) .settings .root.Values.settings }}
- { name: {{ $name }}, value: {{ $value | toString | quote }} }
{{- end }}
{{- end }}

{{- define "qe.mounts" -}}
- { name: tmp, mountPath: /tmp }
- { name: home, mountPath: /var/lib/qe }
{{- if .Values.storage.existingClaim }}
- { name: storage, mountPath: /var/lib/qe/storage }
{{- end }}
{{- if .Values.models.existingClaim }}
- { name: models, mountPath: /models, readOnly: true }
{{- end }}
{{- end }}

{{- define "qe.volumes" -}}
- { name: tmp, emptyDir: {} }
{{- with .Values.storage.existingClaim }}
- { name: storage, persistentVolumeClaim: { claimName: {{ . }} } }
{{- end }}
{{- with .Values.models.existingClaim }}
- { name: models, persistentVolumeClaim: { claimName: {{ . }}, readOnly: true } }
{{- end }}
{{- end }}

{{- define "qe.pod" -}}
serviceAccountName: {{ include "qe.name" . }}
automountServiceAccountToken: false
{{- with .Values.image.pullSecrets }}
imagePullSecrets: {{ toJson . }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: { type: RuntimeDefault }
{{- end }}

{{- define "qe.container" -}}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: { drop: [ALL] }
{{- end }}

{{- /* The check of docs/deployment.md, "Health". */}}
{{- define "qe.alive" -}}
exec: { command: [sh, -c, 'test -n "$(find "$QE_HEARTBEAT_FILE" -mmin -1)"'] }
periodSeconds: 20
timeoutSeconds: 10
failureThreshold: 6
{{- end }}

{{- define "qe.checksum" -}}
checksum/secret: {{ toJson .Values.secret | sha256sum }}
{{- end }}
