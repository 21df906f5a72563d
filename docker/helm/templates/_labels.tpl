{{- define "deeplab.selector" -}}
app.kubernetes.io/name: deeplab
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}
{{- define "deeplab.metadata" -}}
name: {{ .Release.Name }}
labels:
  {{- include "deeplab.selector" . | nindent 2 }}
  app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}
